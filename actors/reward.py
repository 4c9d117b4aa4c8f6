"""Reward actors: codes -> pixels -> reward models."""

from pathlib import Path

import numpy as np
import ray

from actors.monitor import Monitored
from simplear_rl.config import RewardConfig
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.types import Rollout


@ray.remote(max_restarts=-1, max_task_retries=-1)
class RewardActor(Monitored):
    """A RewardScorer in an actor of its own. Restarts freely: it holds nothing but models."""

    def __init__(self, name: str, index: int, config: RewardConfig, tokenizer: Path, layout: ImageLayout):
        super().__init__(name, ("score",))
        from simplear_rl.rewards.scorer import RewardScorer

        with self.building():
            self.scorer = RewardScorer(config, tokenizer, layout)

    def check(self, prompts: list[str]) -> None:
        """See RewardScorer.check."""
        self.scorer.check(prompts)

    def score(self, rollout: Rollout) -> dict[str, np.ndarray]:
        """Rewards of a group, see RewardScorer.score."""
        with self.phase("score", rollout.seed[1], images=len(rollout.codes)):
            return self.scorer.score(rollout)

    def decode(self, rollout: Rollout) -> np.ndarray:
        """The group's images, uint8 [G, H, W, 3]."""
        return self.scorer.decode(rollout)
