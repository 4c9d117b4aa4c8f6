"""The samples of a GRPO step: drawn, scored and compared with the reference."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import ray

from actors.pool import Call, Pool
from actors.rollout import stream
from simplear_rl.policy.rollouts import Draw


@dataclass(frozen=True)
class Group:
    """The samples of one prompt, as references to objects in Ray's store."""

    rollout: ray.ObjectRef  # Rollout
    rewards: ray.ObjectRef  # see RewardScorer.score
    reference_log_probs: ray.ObjectRef  # float32 [G, T]


class Sampler:
    """Draws groups with the engines; reward and reference actors work on each as soon as it is complete."""

    def __init__(self, engines: Pool, rewards: Pool, references: Pool):
        self.engines, self.rewards, self.references = engines, rewards, references

    def __call__(
        self, draw: Draw, version: int, weights: Callable[[], ray.ObjectRef]
    ) -> tuple[list[Group], dict[str, float]]:
        """The groups, in the order of the prompts, and how long they took.

        `rollout_seconds` is the time until all were drawn, `scoring_seconds` what the last ones then had to be waited
        for. `version` and `weights`: see `stream`.
        """
        start = monotonic()
        calls: dict[int, tuple[ray.ObjectRef, Call, Call]] = {}
        for index, rollout in stream(self.engines, draw, version, weights):
            calls[index] = rollout, self.rewards.call("score", rollout), self.references.call("log_probs", rollout)
        drawn = monotonic()
        rollouts, scoring, comparing = zip(*(calls[prompt.index] for prompt in draw.prompts), strict=True)
        parts = zip(rollouts, self.rewards.settled(scoring), self.references.settled(comparing), strict=True)
        groups = [Group(*part) for part in parts]
        return groups, {"rollout_seconds": drawn - start, "scoring_seconds": monotonic() - drawn}
