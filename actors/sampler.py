"""The samples of a GRPO step: drawn, scored and compared with the reference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import monotonic

import ray

from actors.pool import Call, Pool
from actors.rollout import stream
from simplear_rl.policy.rollouts import Draw, Prompt


@dataclass(frozen=True)
class Group:
    """The samples of one prompt, as references to objects in Ray's store."""

    rollout: ray.ObjectRef  # Rollout
    rewards: ray.ObjectRef  # Scores
    reference_log_probs: ray.ObjectRef | None  # float32 [G, T]; None: there is no reference


@dataclass(frozen=True)
class Drawn:
    """A group that is drawn, and the calls that score and compare it."""

    rollout: ray.ObjectRef
    scoring: Call
    comparing: Call | None


class Sampler:
    """Draws groups with the engines; reward and reference actors work on each as soon as it is complete.

    Args:
        engines: draw.
        rewards: score.
        references: compare; None: nothing is compared.
        contexts: how many an engine decodes at a time.
        refill: how often groups whose rewards are all equal, or that are left out, are replaced.
    """

    def __init__(self, engines: Pool, rewards: Pool, references: Pool | None, contexts: int, refill: int = 0):
        self.engines, self.rewards, self.references = engines, rewards, references
        self.contexts, self.refill = contexts, refill

    def draw(
        self,
        draw: Draw,
        further: Iterator[Prompt],
        frozen: Path,
        version: int,
        weights: Callable[[], ray.ObjectRef] | None = None,
    ) -> tuple[list[Drawn], dict[str, float]]:
        """The groups, in the order of the prompts, how long it took to draw them, and how many were replaced.

        The next of the `further` prompts goes to the first of the groups that are replaced, whichever was drawn first.
        A group stays as it is when there is no further prompt. `frozen` is the reference's policy folder. `version` and
        `weights`: see `stream`.
        """
        start, replaced = monotonic(), 0
        groups = self._groups(draw, frozen, version, weights)
        for _ in range(self.refill):
            rewards = self.rewards.settled([group.scoring for group in groups])
            equal = [i for i, scores in enumerate(rewards) if not ray.get(scores).has_signal]
            prompts = list(islice(further, len(equal)))
            if not prompts:
                break
            others = self._groups(replace(draw, prompts=prompts), frozen, version, weights)
            for i, group in zip(equal, others, strict=False):
                groups[i] = group
            replaced += len(others)
        metrics = {"rollout_seconds": monotonic() - start}
        return groups, metrics | ({"refilled_groups": float(replaced)} if self.refill else {})

    def settled(self, drawn: Sequence[Drawn]) -> list[Group]:
        """The groups. Of what fixed actors score and compare, some may not be there yet, see Pool."""
        rewards = self.rewards.settled([group.scoring for group in drawn])
        log_probs: Sequence[ray.ObjectRef | None] = [None] * len(drawn)
        if self.references:
            log_probs = self.references.settled([group.comparing for group in drawn if group.comparing])
        parts = zip([group.rollout for group in drawn], rewards, log_probs, strict=True)
        return [Group(*part) for part in parts]

    def _groups(
        self, draw: Draw, frozen: Path, version: int, weights: Callable[[], ray.ObjectRef] | None
    ) -> list[Drawn]:
        drawn: dict[int, Drawn] = {}
        for index, rollout in stream(self.engines, draw, self.contexts, version, weights):
            comparing = self.references.call("log_probs", rollout, frozen) if self.references else None
            drawn[index] = Drawn(rollout, self.rewards.call("score", rollout), comparing)
        return [drawn[prompt.index] for prompt in draw.prompts]
