"""The samples of a GRPO step: drawn, scored and compared with the reference."""

from collections.abc import Callable, Sequence
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
    rewards: ray.ObjectRef  # Scores
    reference_log_probs: ray.ObjectRef | None  # float32 [G, T]; None: there is no reference


class Sampler:
    """Draws groups with the engines; reward and reference actors work on each as soon as it is complete.

    Without `references` nothing is compared.
    """

    def __init__(self, engines: Pool, rewards: Pool, references: Pool | None):
        self.engines, self.rewards, self.references = engines, rewards, references

    def __call__(
        self, draw: Draw, version: int, weights: Callable[[], ray.ObjectRef]
    ) -> tuple[list[Group], dict[str, float]]:
        """The groups, in the order of the prompts, and how long they took.

        `rollout_seconds` is the time until all were drawn, `scoring_seconds` what the last ones then had to be waited
        for. `version` and `weights`: see `stream`.
        """
        start = monotonic()
        rollouts: dict[int, ray.ObjectRef] = {}
        scoring: dict[int, Call] = {}
        comparing: dict[int, Call] = {}
        for index, rollout in stream(self.engines, draw, version, weights):
            rollouts[index], scoring[index] = rollout, self.rewards.call("score", rollout)
            if self.references:
                comparing[index] = self.references.call("log_probs", rollout)
        drawn = monotonic()
        order = [prompt.index for prompt in draw.prompts]
        rewards = self.rewards.settled([scoring[index] for index in order])
        log_probs: Sequence[ray.ObjectRef | None] = [None] * len(order)
        if self.references:
            log_probs = self.references.settled([comparing[index] for index in order])
        parts = zip([rollouts[index] for index in order], rewards, log_probs, strict=True)
        groups = [Group(*part) for part in parts]
        return groups, {"rollout_seconds": drawn - start, "scoring_seconds": monotonic() - drawn}
