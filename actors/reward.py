"""Reward actors: codes -> pixels -> reward models."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from ray.actor import ActorHandle

from actors.isolated import build_reward
from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.sampler import Group
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.policy.rollouts import Rollout, Scores
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.report import grids


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class RewardActor(Monitored):
    """A RewardScorer in an actor of its own. Restarts freely: it holds nothing but models."""

    def __init__(self, name: str, index: int, config: RewardConfig, tokenizer: Path, layout: ImageLayout, run: Path):
        super().__init__(name, ("score",))
        from simplear_rl.rewards.scorer import RewardScorer

        with self.building():
            self.scorer = RewardScorer(config, tokenizer, layout, run, build_reward)

    def check(self, prompts: Sequence[PromptRow]) -> list[str]:
        """See RewardScorer.check."""
        return self.scorer.check(prompts)

    def score(self, rollout: Rollout) -> Scores:
        """See RewardScorer.score."""
        with self.phase("score", rollout.step, images=len(rollout.codes)):
            return self.scorer.score(rollout)

    def decode(self, rollout: Rollout) -> np.ndarray:
        """The group's images, uint8 [G, H, W, 3]."""
        return self.scorer.decode(rollout)


def save_grid(file: Path, scorer: ActorHandle, groups: Sequence[Group]) -> None:
    """Draw the samples of some groups with the reward above each; a reward actor decodes them."""
    images = ray.get([scorer.decode.remote(group.rollout) for group in groups])
    captions = [rollout.prompt.text for rollout in ray.get([group.rollout for group in groups])]
    rewards = ray.get([group.rewards for group in groups])
    titles = [["left out" if group.error else f"{value:.2f}" for value in group.total] for group in rewards]
    grids.save_grid(file, list(zip(captions, images, strict=True)), titles)
