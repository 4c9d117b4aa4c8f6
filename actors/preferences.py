"""The pairs of a step of DPO: stored ones, or of what the policy draws, by reward."""

from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import Protocol

import numpy as np
import ray

from actors.broadcast import Broadcast
from actors.evaluation import Evaluation, by_engines
from actors.learner import LearnerGroup
from actors.placement import Stage
from actors.pool import Call, Pool
from actors.reward import RewardActor, save_grid
from actors.rollout import RolloutActor
from actors.sampler import Group, Sampler
from actors.samples import Samples
from simplear_rl.algorithms.pairs import preference_pairs
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.data.batches import PairDataset, Prefetcher
from simplear_rl.data.prompts import read_rows
from simplear_rl.data.shards import TokenShards
from simplear_rl.policy.rollouts import Rollout, Scores
from simplear_rl.policy.vocabulary import ImageLayout, read_encoder
from simplear_rl.rewards.files import check_rewards
from simplear_rl.rewards.metrics import learned_rewards, reward_metrics
from simplear_rl.run.events import say

Begun = tuple[list[ray.ObjectRef], list[Call]]  # images, and what the reference is asked of them


class PairSource(Protocol):
    """Where the driver of DPO has its pairs from. Building one checks what it reads, before any actor starts."""

    shards: list[TokenShards]  # that are read
    names: list[str]  # of metrics that not every step logs

    def launch(self, stage: Stage, references: Pool) -> None:
        """Start the actors that it needs; `references` compare."""

    def begin(self, learner: LearnerGroup) -> None:
        """Before the first step, once all actors are there."""

    def __call__(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """The groups of a step, with rewards and reference log-probs, and metrics."""

    def finish(self, step: int) -> dict[str, float]:
        """After the learner's step. Returns metrics."""


def pair_source(config: DpoConfig, layout: ImageLayout) -> PairSource:
    """Stored pairs or drawn ones, as the configuration says."""
    return DrawnPairs(config, layout) if config.rollout else StoredPairs(config, layout)


class Comparison:
    """Reference log-probs of the images of pairs, by the frozen reference."""

    def __init__(self, config: DpoConfig, references: Pool):
        self.frozen, self.references = config.start, references

    def begin(self, rollouts: Sequence[Rollout]) -> Begun:
        """Ask for them."""
        images = [ray.put(rollout) for rollout in rollouts]
        return images, [self.references.call("log_probs", [rollout], self.frozen) for rollout in images]

    def groups(self, begun: Begun, rewards: Sequence[ray.ObjectRef]) -> list[Group]:
        """The groups. Of what fixed actors compare, some may not be there yet, see Pool."""
        images, calls = begun
        return [Group(*parts) for parts in zip(images, rewards, self.references.settled(calls), strict=True)]


class StoredPairs:
    """Pairs from token shards. The reference compares those of the next step while the learner learns."""

    def __init__(self, config: DpoConfig, layout: ImageLayout):
        assert config.data
        self.config, self.names = config, list[str]()
        data = PairDataset(config.data, read_encoder(config.start), layout, config.seed)
        self.shards, self.batch = data.sources, Prefetcher(data.batch)
        self.coming: dict[int, tuple[Begun, int]] = {}

    def launch(self, stage: Stage, references: Pool) -> None:
        """See PairSource."""
        self.compare = Comparison(self.config, references)
        self.labels = ray.put(Scores({}, np.array([1, 0], np.float32)))

    def begin(self, learner: LearnerGroup) -> None:
        """See PairSource."""

    def __call__(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """See PairSource."""
        begun, truncated = self.coming.pop(step) if step in self.coming else self._begin(step)
        if step < self.config.steps:
            self.coming[step + 1] = self._begin(step + 1)
        groups = self.compare.groups(begun, [self.labels] * len(begun[0]))
        return groups, {"truncated": float(truncated)}

    def finish(self, step: int) -> dict[str, float]:
        """See PairSource."""
        return {}

    def _begin(self, step: int) -> tuple[Begun, int]:
        pairs, truncated = self.batch(step)
        return self.compare.begin(pairs), truncated


class DrawnPairs:
    """Pairs of what the engines draw for the prompts of a step, as the rewards say.

    Of a group only the images that are in pairs go to reference and learner. A group of equal rewards, or one that is
    left out, keeps two images, which make no pair.
    """

    def __init__(self, config: DpoConfig, layout: ImageLayout):
        assert config.rollout and config.reward and config.prompts
        self.config, self.layout, self.rollout, self.reward = config, layout, config.rollout, config.reward
        self.shards: list[TokenShards] = []
        self.prompts = read_rows(config.prompts, read_encoder(config.start, self.rollout.engine.max_prompt_tokens))
        check_rewards(self.reward, self.prompts)
        self.evaluation = Evaluation(config, self.rollout.engine)
        self.names = self.evaluation.names

    def launch(self, stage: Stage, references: Pool) -> None:
        """See PairSource."""
        config = self.config
        self.engines = stage.pool("rollout.engine.actors", RolloutActor, config.start, self.rollout.engine)
        scored = self.reward, config.tokenizer, self.layout, config.run
        self.rewards = stage.pool("reward.actors", RewardActor, *scored)
        self.evaluation.launch(stage)
        self.compare = Comparison(config, references)
        # Without references: these compare the images of pairs alone.
        contexts = self.rollout.engine.max_concurrent
        self.sampler = Sampler(self.engines, self.rewards, None, contexts, self.rollout.refill)

    def begin(self, learner: LearnerGroup) -> None:
        """See PairSource."""
        say(*ray.get(self.rewards.fixed[0].check.remote(self.prompts)))
        self.learner, broadcast = learner, Broadcast(self.rollout.broadcast, learner, self.engines)
        self.samples = Samples(self.config, self.prompts, self.sampler, broadcast, learner, lambda _: self.config.start)
        self.samples.begin(None)  # the learner is loaded already

    def __call__(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """See PairSource. `pairing_seconds` is the time from the last image to the pairs."""
        self.drawn, metrics = self.samples(step)
        start = monotonic()
        scores = ray.get([group.rewards for group in self.drawn])
        rollouts, rewards = [], []
        for group, learned in zip(self.drawn, learned_rewards(scores), strict=True):
            rollout, chosen = ray.get(group.rollout), compared_images(learned, self.config.algorithm.margin)
            rollouts.append(replace(rollout, codes=rollout.codes[chosen], log_probs=rollout.log_probs[chosen]))
            rewards.append(ray.put(Scores({}, learned[chosen])))
        groups = self.compare.groups(self.compare.begin(rollouts), rewards)
        return groups, metrics | reward_metrics(scores) | {"pairing_seconds": monotonic() - start}

    def finish(self, step: int) -> dict[str, float]:
        """See PairSource."""
        metrics = self.samples.renew()
        if self.evaluation.due(step):
            contexts = self.rollout.engine.max_concurrent
            metrics |= self.evaluation(step, by_engines(self.engines, contexts, step, self.learner.weights))
        if step % self.config.samples_every == 0:
            save_grid(self.config.run / "samples" / f"step-{step:06d}.png", self.rewards.fixed[0], self.drawn)
        return metrics


def compared_images(rewards_G: np.ndarray, margin: float | None) -> np.ndarray:
    """Which images of a group are in pairs, ascending; where there is no pair, the first two, which make none."""
    chosen = np.unique(preference_pairs(rewards_G, margin))
    return chosen if len(chosen) else np.array([0, 1])
