"""Scores rollouts: decodes the codes and sums the weighted rewards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simplear_rl.algorithms.diversity import diversity
from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.device import default_device
from simplear_rl.policy.rollouts import Rollout
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.geneval import GenEvalReward
from simplear_rl.rewards.hpsv2 import HpsV2Reward
from simplear_rl.run.guards import group_evidence, refusal
from simplear_rl.tokenizers.cosmos import CosmosTokenizer


class RewardModel(Protocol):
    """What gives images a reward for their texts."""

    context_length: int | None  # tokens that it reads, if there is a limit

    def too_long(self, texts: list[str]) -> list[bool]:
        """Of each text, whether only its beginning is read."""

    def check(self, texts: list[str]) -> list[str]:
        """The texts of which only the beginning is read. Raises UserError if one cannot be scored."""

    def score(self, images: np.ndarray, texts: list[str]) -> np.ndarray:
        """Rewards float32 [B] of uint8 images [B, H, W, 3]."""


# By the type of their configuration class.
REWARDS: dict[str, Callable[[Any, str], RewardModel]] = {
    "clip": ClipReward,
    "hpsv2": HpsV2Reward,
    "geneval": GenEvalReward,
}


class RewardScorer:
    """The visual tokenizer of folder `tokenizer` and the configured reward models.

    A group whose reward is not finite is saved in the folder `run`, if there is one.
    """

    def __init__(self, config: RewardConfig, tokenizer: Path, layout: ImageLayout, run: Path | None = None):
        device = default_device()
        self.tokenizer = CosmosTokenizer(tokenizer, device)
        self.layout, self.run = layout, run
        self.is_metric = any(model.type == "geneval" for model in config.models)
        self.models = {model.name: (model.weight, REWARDS[model.type](model, device)) for model in config.models}

    def check(self, prompts: list[str]) -> list[str]:
        """A line for each reward model that reads only the beginning of some prompts, and one if a metric is a reward.

        Raises UserError if a model with `long_text: refuse` cannot read a prompt whole, or GenEval does not know one.
        """
        lines = [
            f"reward {name} reads only the first {model.context_length} tokens of {len(cut)} of {len(prompts)} "
            f"prompts, for example {cut[0]!r}"
            for name, (_, model) in self.models.items()
            if (cut := model.check(prompts))
        ]
        return lines + ([REWARD_IS_METRIC] if self.is_metric else [])

    def decode(self, rollout: Rollout) -> np.ndarray:
        """The group's images, uint8 [G, H, W, 3]."""
        return self.tokenizer.decode(rollout.codes, self.layout.rows, self.layout.columns)

    def score(self, rollout: Rollout) -> dict[str, np.ndarray]:
        """float32 [G] per reward model, under its name, and their weighted sum under "total".

        Under "truncated" 1 where a model read only the beginning of the prompt (`long_text: truncate`), else 0.
        Under "diversity" that of the group's images, the mean over the models that have image features, if any has.

        Raises:
            UserError: a reward is not finite; names the model, the prompt and the sample.
        """
        images = self.decode(rollout)
        texts = [rollout.prompt.text] * len(images)
        rewards: dict[str, np.ndarray] = {}
        diversities: list[float] = []
        for name, (_, model) in self.models.items():
            if isinstance(model, ClipReward):
                features = model.image_features(images)
                rewards[name] = model.score_features(features, texts)
                diversities.append(diversity(features))
            else:
                rewards[name] = model.score(images, texts)
        for name, values in rewards.items():
            if not np.isfinite(values).all():
                quantity = f"reward {name} {values[~np.isfinite(values)][0]}"
                raise refusal(self.run, rollout.step, quantity, group_evidence(rollout, rewards))
        total = np.stack([self.models[name][0] * values for name, values in rewards.items()]).sum(axis=0)
        cut = any(model.too_long([rollout.prompt.text])[0] for _, model in self.models.values())
        truncated = np.full(len(images), cut, np.float32)
        spread = {"diversity": np.full(len(images), np.mean(diversities))} if diversities else {}
        return rewards | {"total": total.astype(np.float32), "truncated": truncated} | spread
