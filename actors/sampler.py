"""The samples of a step: drawn, scored and compared with the reference."""

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
    reference_log_probs: ray.ObjectRef | None  # float32 [G, T] of all groups of its pass; None: there is no reference
    place: int = 0  # in that pass


@dataclass(frozen=True)
class Passes:
    """Which groups of a step go through learner and reference together: a rank has every `ranks`-th group."""

    ranks: int = 1
    together: int = 1

    def of(self, groups: int) -> list[list[int]]:
        """The numbers of the groups of each pass."""
        shares = [list(range(rank, groups, self.ranks)) for rank in range(self.ranks)]
        return [share[i : i + self.together] for share in shares for i in range(0, len(share), self.together)]


class Drawn:
    """The groups of a step that are drawn so far, and the calls that score and compare them.

    Args:
        prompts: of the step, in order.
        passes: which groups are compared together.
    """

    def __init__(self, prompts: Sequence[Prompt], passes: Passes):
        self.place = {prompt.index: i for i, prompt in enumerate(prompts)}
        self.rollouts: dict[int, ray.ObjectRef] = {}  # by the prompt's place
        self.scoring: dict[int, Call] = {}
        self.passes = passes.of(len(prompts))
        self.comparing: dict[int, Call] = {}  # by the number of the pass

    def scores(self) -> list[Call]:
        """In the order of the prompts, once all are drawn."""
        return [self.scoring[place] for place in range(len(self.place))]


class Sampler:
    """Draws groups with the engines; reward and reference actors work on each as soon as it is complete.

    Args:
        engines: draw.
        rewards: score.
        references: compare; None: nothing is compared.
        contexts: how many an engine decodes at a time.
        refill: how often groups whose rewards are all equal, or that are left out, are replaced.
        passes: which groups are compared together.
    """

    def __init__(
        self,
        engines: Pool,
        rewards: Pool,
        references: Pool | None,
        contexts: int,
        refill: int = 0,
        passes: Passes | None = None,
    ):
        self.engines, self.rewards, self.references = engines, rewards, references
        self.contexts, self.refill, self.passes = contexts, refill, passes or Passes()

    def draw(
        self,
        draw: Draw,
        further: Iterator[Prompt],
        frozen: Path,
        version: int,
        weights: Callable[[], ray.ObjectRef] | None = None,
    ) -> tuple[Drawn, dict[str, float]]:
        """The groups, in the order of the prompts, how long it took to draw them, and how many were replaced.

        The next of the `further` prompts goes to the first of the groups that are replaced, whichever was drawn first.
        A group stays as it is when there is no further prompt. `frozen` is the reference's policy folder. `version` and
        `weights`: see `stream`.
        """
        start, replaced = monotonic(), 0
        drawn = Drawn(draw.prompts, self.passes)
        for index, rollout in stream(self.engines, draw, self.contexts, version, weights):
            self._add(drawn, drawn.place[index], rollout)
            if not self.refill:  # which may replace it
                self._compare(drawn, frozen)
        for _ in range(self.refill):
            rewards = self.rewards.settled(drawn.scores())
            equal = [i for i, scores in enumerate(rewards) if not ray.get(scores).has_signal]
            prompts = list(islice(further, len(equal)))
            if not prompts:
                break
            place = {prompt.index: i for prompt, i in zip(prompts, equal, strict=False)}
            others = stream(self.engines, replace(draw, prompts=prompts), self.contexts, version, weights)
            for index, rollout in others:
                self._add(drawn, place[index], rollout)
            replaced += len(prompts)
        self._compare(drawn, frozen)
        metrics = {"rollout_seconds": monotonic() - start}
        return drawn, metrics | ({"refilled_groups": float(replaced)} if self.refill else {})

    def settled(self, drawn: Drawn) -> list[Group]:
        """The groups. Of what fixed actors score and compare, some may not be there yet, see Pool."""
        rewards = self.rewards.settled(drawn.scores())
        compared: dict[int, tuple[ray.ObjectRef, int]] = {}  # by the group's place, with its place in the pass
        if self.references:
            log_probs = self.references.settled([drawn.comparing[number] for number in range(len(drawn.passes))])
            for members, reference in zip(drawn.passes, log_probs, strict=True):
                compared |= {group: (reference, i) for i, group in enumerate(members)}
        return [
            Group(drawn.rollouts[place], scores, *compared.get(place, (None, 0)))
            for place, scores in enumerate(rewards)
        ]

    def _add(self, drawn: Drawn, place: int, rollout: ray.ObjectRef) -> None:
        drawn.rollouts[place], drawn.scoring[place] = rollout, self.rewards.call("score", rollout)

    def _compare(self, drawn: Drawn, frozen: Path) -> None:
        """Ask for the passes that are complete, for each once."""
        if not self.references:
            return
        for number, members in enumerate(drawn.passes):
            if number not in drawn.comparing and all(place in drawn.rollouts for place in members):
                rollouts = [drawn.rollouts[place] for place in members]
                drawn.comparing[number] = self.references.call("log_probs", rollouts, frozen)
