"""Scores rollouts: decodes the codes and combines the rewards."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simplear_rl.algorithms.combining import normalised_sum
from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC
from simplear_rl.config.rewards import RewardConfig, RewardModelConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Rollout, Scores
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.geneval import GenEvalReward
from simplear_rl.rewards.hpsv2 import HpsV2Reward
from simplear_rl.rewards.http import HttpReward
from simplear_rl.rewards.python import PythonReward
from simplear_rl.rewards.reward import RewardModel, UnscoredError, require_scored
from simplear_rl.run.guards import group_evidence, refusal
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

log = logging.getLogger(__name__)
# By the type of their configuration class.
REWARDS: dict[str, Callable[[Any, str], RewardModel]] = {
    "clip": ClipReward,
    "hpsv2": HpsV2Reward,
    "geneval": GenEvalReward,
    "python": PythonReward,
    "http": HttpReward,
}


def build_reward(config: RewardModelConfig, device: str) -> RewardModel:
    """The reward model of a configuration, in this process. Raises UserError if it cannot be had."""
    return REWARDS[config.type](config, device)


class RewardScorer:
    """The visual tokenizer of folder `tokenizer` and the configured reward models.

    A group whose reward is not finite is saved in the folder `run`, if there is one. `build` makes a reward model.
    """

    def __init__(
        self,
        config: RewardConfig,
        tokenizer: Path,
        layout: ImageLayout,
        run: Path | None = None,
        build: Callable[[RewardModelConfig, str], RewardModel] = build_reward,
    ):
        device = default_device()
        self.tokenizer = CosmosTokenizer(tokenizer, device)
        self.config, self.layout, self.run = config, layout, run
        self.is_metric = any(model.type == "geneval" for model in config.models)
        self.models = {model.name: (model, build(model, device)) for model in config.models}

    def check(self, prompts: Sequence[PromptRow]) -> list[str]:
        """A line for each reward model that reads only the beginning of some prompts, and one if a metric is a reward.

        Raises UserError if a model with `long_text: refuse` cannot read a prompt whole, GenEval does not know one, or a
        reward of the user's does not score two black images.
        """
        rows = {row.text: row.columns for row in prompts}
        texts = sorted(rows)
        lines = [
            f"reward {name} reads only the first {model.context_length} tokens of {len(cut)} of {len(texts)} "
            f"prompts, for example {cut[0]!r}"
            for name, (_, model) in self.models.items()
            if (cut := model.check(texts, [rows[text] for text in texts]))
        ]
        return lines + ([REWARD_IS_METRIC] if self.is_metric else [])

    def decode(self, rollout: Rollout) -> np.ndarray:
        """The group's images, uint8 [G, H, W, 3]."""
        return self.tokenizer.decode(rollout.codes, self.layout.rows, self.layout.columns)

    def score(self, rollout: Rollout) -> Scores:
        """Scores of a rollout's images.

        Raises:
            UserError: an image cannot be scored, or its reward is not finite; names the model, the prompt and the
                sample. With `on_error: skip_group` the group is left out instead.
        """
        images, prompt = self.decode(rollout), rollout.prompt
        rewards: dict[str, np.ndarray] = {}
        weights: list[float] = []
        clipped: dict[str, float] = {}
        for config, model in self.models.values():
            try:
                found = self._checked(rollout, config, model, images)
            except UnscoredError as error:
                if not config.skips:
                    raise UserError(f"step {rollout.step}, prompt {prompt.text!r}: {error}") from error
                log.warning("step %d, prompt %r is left out: %s", rollout.step, prompt.text, error)
                return Scores({}, np.full(len(images), np.nan, np.float32), error=str(error))
            weights += [config.weight] * len(found)
            if config.bounds:
                low, high = map(np.float32, config.bounds)
                clipped |= {key: float(((v < low) | (v > high)).mean()) for key, v in found.items()}
                found = {key: values.clip(low, high) for key, values in found.items()}
            rewards |= found
        stacked_NG = np.stack(list(rewards.values()))
        total = sum(weight * values for weight, values in zip(weights, stacked_NG, strict=True))
        normalised = normalised_sum(stacked_NG, weights) if self.config.aggregate == "gdpo" else None
        truncated = any(model.too_long([prompt.text])[0] for _, model in self.models.values())
        return Scores(rewards, np.asarray(total, np.float32), normalised, truncated, clipped)

    def _checked(
        self, rollout: Rollout, config: RewardModelConfig, model: RewardModel, images: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The rewards of one model by name. Raises UserError or UnscoredError if one is not finite."""
        number, prompt = len(images), rollout.prompt
        found = model.score(images, [prompt.text] * number, [prompt.columns] * number)
        named = {f"{config.name}_{key}": v for key, v in found.items()} if isinstance(found, Mapping) else {}
        rewards = named or {config.name: np.asarray(found)}
        for name, values in rewards.items():
            if not np.isfinite(values).all():
                if config.skips:
                    require_scored(f"reward {name}:", values)
                quantity = f"reward {name} {values[~np.isfinite(values)][0]}"
                raise refusal(self.run, rollout.step, quantity, group_evidence(rollout, rewards))
        return rewards
