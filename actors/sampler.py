"""The samples of a GRPO step: drawn, scored and compared with the reference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import monotonic

import ray

from actors.pool import Call, Pool
from actors.rollout import stream
from simplear_rl.algorithms.advantages import no_signal
from simplear_rl.policy.rollouts import Draw, Prompt


@dataclass(frozen=True)
class Group:
    """The samples of one prompt, as references to objects in Ray's store."""

    rollout: ray.ObjectRef  # Rollout
    rewards: ray.ObjectRef  # see RewardScorer.score
    reference_log_probs: ray.ObjectRef | None  # float32 [G, T]; None: there is no reference


class Sampler:
    """Draws groups with the engines; reward and reference actors work on each as soon as it is complete.

    Args:
        engines: draw.
        rewards: score.
        references: compare; None: nothing is compared.
        frozen: which policy folder is the reference of a step.
        refill: how often groups whose rewards are all equal are replaced.
    """

    def __init__(
        self, engines: Pool, rewards: Pool, references: Pool | None, frozen: Callable[[int], Path], refill: int = 0
    ):
        self.engines, self.rewards, self.references = engines, rewards, references
        self.frozen, self.refill = frozen, refill

    def __call__(
        self, draw: Draw, further: Iterator[Prompt], version: int, weights: Callable[[], ray.ObjectRef]
    ) -> tuple[list[Group], dict[str, float]]:
        """The groups, in the order of the prompts, how long they took, and how many were replaced.

        The next of the `further` prompts goes to the first of the groups that are replaced, whichever was drawn first.
        A group stays as it is when there is no further prompt. `version` and `weights`: see `stream`.
        """
        groups, metrics = self._groups(draw, version, weights)
        replaced = 0
        for _ in range(self.refill):
            equal = [i for i, group in enumerate(groups) if no_signal(ray.get(group.rewards)["total"])]
            prompts = list(islice(further, len(equal)))
            if not prompts:
                break
            others, seconds = self._groups(replace(draw, prompts=prompts), version, weights)
            for i, group in zip(equal, others, strict=False):
                groups[i] = group
            metrics = {name: metrics[name] + seconds[name] for name in metrics}
            replaced += len(others)
        return groups, metrics | ({"refilled_groups": float(replaced)} if self.refill else {})

    def _groups(
        self, draw: Draw, version: int, weights: Callable[[], ray.ObjectRef]
    ) -> tuple[list[Group], dict[str, float]]:
        """`rollout_seconds` is the time until all were drawn, `scoring_seconds` what the last ones are waited for."""
        start = monotonic()
        rollouts: dict[int, ray.ObjectRef] = {}
        scoring: dict[int, Call] = {}
        comparing: dict[int, Call] = {}
        frozen = self.frozen(draw.step)
        for index, rollout in stream(self.engines, draw, version, weights):
            rollouts[index], scoring[index] = rollout, self.rewards.call("score", rollout)
            if self.references:
                comparing[index] = self.references.call("log_probs", rollout, frozen)
        drawn = monotonic()
        order = [prompt.index for prompt in draw.prompts]
        rewards = self.rewards.settled([scoring[index] for index in order])
        log_probs: Sequence[ray.ObjectRef | None] = [None] * len(order)
        if self.references:
            log_probs = self.references.settled([comparing[index] for index in order])
        parts = zip([rollouts[index] for index in order], rewards, log_probs, strict=True)
        groups = [Group(*part) for part in parts]
        return groups, {"rollout_seconds": drawn - start, "scoring_seconds": monotonic() - drawn}
