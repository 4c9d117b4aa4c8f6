"""Scores rollouts: decodes the codes and combines the rewards."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simplear_rl.algorithms.combining import normalised_sum
from simplear_rl.algorithms.diversity import diversity
from simplear_rl.benchmarks.geneval2 import REWARD_IS_METRIC
from simplear_rl.config.rewards import RewardConfig, RewardModelConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Rollout, Scores
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.clip_head import ClipHeadReward
from simplear_rl.rewards.geneval import GenEvalReward
from simplear_rl.rewards.geneval2 import GenEval2Reward
from simplear_rl.rewards.hpsv2 import HpsV2Reward
from simplear_rl.rewards.http import HttpReward
from simplear_rl.rewards.python import PythonReward
from simplear_rl.rewards.reward import Columns, RewardModel, UnscoredError, by_name, unscored
from simplear_rl.run.guards import group_evidence, refusal
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

log = logging.getLogger(__name__)
# By the type of their configuration class.
REWARDS: dict[str, Callable[[Any, str], RewardModel]] = {
    "clip": ClipReward,
    "hpsv2": HpsV2Reward,
    "clip_head": ClipHeadReward,
    "geneval": GenEvalReward,
    "geneval2": GenEval2Reward,
    "python": PythonReward,
    "http": HttpReward,
}


def build_reward(config: RewardModelConfig, device: str) -> RewardModel:
    """The reward model of a configuration, in this process. Raises UserError if it cannot be had."""
    return REWARDS[config.type](config, device)


@dataclass(frozen=True)
class Combined:
    """What all reward models say of B images."""

    rewards: Mapping[str, np.ndarray]  # float32 [B] by name, within their bounds; NaN: cannot be scored
    weights: Sequence[float]  # of the rewards
    clipped: Mapping[str, float]  # share of a reward's scores beyond its bounds
    error: str  # why one cannot be scored; nothing if all can
    diversity: float | None  # of the images, the mean over the models that have image features

    @property
    def total(self) -> np.ndarray:
        """The weighted sum, float32 [B]."""
        parts = zip(self.weights, self.rewards.values(), strict=True)
        return np.asarray(sum(weight * values for weight, values in parts), np.float32)


class RewardModels:
    """The configured reward models.

    Args:
        config: which.
        build: makes one.
        skip: whether an image that cannot be scored is NaN, whatever `on_error` says.
    """

    def __init__(
        self,
        config: RewardConfig,
        build: Callable[[RewardModelConfig, str], RewardModel] = build_reward,
        skip: bool = False,
    ):
        device, self.skip = default_device(), skip
        self.models = {model.name: (model, build(model, device)) for model in config.models}

    def check(self, rows: Sequence[PromptRow]) -> list[str]:
        """A line for each model that reads only the beginning of some prompts.

        Raises UserError if a model with `long_text: refuse` cannot read a prompt whole, GenEval does not know one, or a
        reward of the user's does not score two black images.
        """
        columns = {row.text: row.columns for row in rows}
        texts = sorted(columns)
        return [
            f"reward {name} reads only the first {model.context_length} tokens of {len(cut)} of {len(texts)} "
            f"prompts, for example {cut[0]!r}"
            for name, (_, model) in self.models.items()
            if (cut := model.check(texts, [columns[text] for text in texts]))
        ]

    def truncates(self, text: str) -> bool:
        """Whether a model reads only the beginning of a text."""
        return any(model.too_long([text])[0] for _, model in self.models.values())

    def score(self, images: np.ndarray, texts: list[str], columns: Columns) -> Combined:
        """The rewards of uint8 images [B, H, W, 3].

        Raises UnscoredError if an image cannot be scored, unless that is to be skipped.
        """
        rewards: dict[str, np.ndarray] = {}
        weights: list[float] = []
        clipped: dict[str, float] = {}
        diversities: list[float] = []
        error = ""
        for config, model in self.models.values():
            try:
                if isinstance(model, ClipReward):
                    features = model.image_features(images)
                    found = {config.name: model.score_features(features, texts)}
                    if len(images) > 1:
                        diversities.append(diversity(features))
                else:
                    found = by_name(model.score(images, texts, columns), config.name)
            except UnscoredError as reason:
                if not (self.skip or config.skips):
                    raise
                found, error = {config.name: np.full(len(images), np.nan, np.float32)}, error or str(reason)
            if (self.skip or config.skips) and (fault := unscored(found)):
                error = error or f"reward {config.name}: {fault}"
            weights += [config.weight] * len(found)
            if config.bounds:
                low, high = map(np.float32, config.bounds)
                clipped |= {name: float(((v < low) | (v > high)).mean()) for name, v in found.items()}
                found = {name: values.clip(low, high) for name, values in found.items()}
            rewards |= found
        return Combined(rewards, weights, clipped, error, float(np.mean(diversities)) if diversities else None)


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
        self.tokenizer = CosmosTokenizer(tokenizer, default_device())
        self.config, self.layout, self.run = config, layout, run
        self.models = RewardModels(config, build)

    def check(self, rows: Sequence[PromptRow]) -> list[str]:
        """See RewardModels.check; and a line if a metric is a reward."""
        types = [model.type for model in self.config.models]
        return self.models.check(rows) + [line for kind, line in REWARD_IS_METRIC.items() if kind in types]

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
        where = f"step {rollout.step}: prompt {prompt.text!r}"
        try:
            found = self.models.score(images, [prompt.text] * len(images), [prompt.columns] * len(images))
        except UnscoredError as error:
            raise UserError(f"{where}: {error}") from error
        if found.error:
            log.warning("%s is left out: %s", where, found.error)
            return Scores({}, np.full(len(images), np.nan, np.float32), error=found.error)
        for name, values in found.rewards.items():
            if not np.isfinite(values).all():
                quantity = f"reward {name} {values[~np.isfinite(values)][0]}"
                raise refusal(self.run, rollout.step, quantity, group_evidence(rollout, dict(found.rewards)))
        normalised = None
        if self.config.aggregate == "gdpo":
            normalised = normalised_sum(np.stack(list(found.rewards.values())), found.weights)
        truncated = self.models.truncates(prompt.text)
        return Scores(found.rewards, found.total, normalised, truncated, found.clipped, found.diversity)
