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
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Rollout, Scores
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.report import grids
from simplear_rl.report.samples import save_samples


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


def save_grid(file: Path, scorer: ActorHandle, groups: Sequence[Group], shown: int = 8) -> None:
    """Draw the samples of the first groups with the reward above each, and keep the rewards of all of them.

    A reward actor decodes the images. What fails is said in one line: a picture never ends a run.
    """
    first = groups[:shown]
    images = ray.get([scorer.decode.remote(group.rollout) for group in first])
    prompts = [rollout.prompt.text for rollout in ray.get([group.rollout for group in groups])]
    rewards = ray.get([group.rewards for group in groups])
    titles = [["left out" if group.error else f"{value:.2f}" for value in group.total] for group in rewards[:shown]]
    grids.save_grid(file, list(zip(prompts, images, strict=False)), titles)
    try:
        totals = [np.full_like(group.total, np.nan) if group.error else group.total for group in rewards]
        save_samples(file.with_suffix(""), prompts, totals, images)
    except (OSError, ValueError, UserError) as error:  # ValueError: a sheet too large for its format
        print(f"{file}: no samples: {error}", flush=True)
