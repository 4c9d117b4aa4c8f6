"""What the objective of a training stage must offer. A new stage is one module here, with a class like these."""

from collections.abc import Sequence
from typing import Protocol

from simplear_rl.policy.rollouts import ScoredRollout


class Objective(Protocol):
    """What a stage optimises, on one rank of the learner: the driver chooses it, every learner actor builds its own."""

    def images(self, groups: Sequence[ScoredRollout]) -> int:
        """How many images this rank's share of a step has."""

    def step(self, step: int, groups: Sequence[ScoredRollout]) -> dict[str, float]:
        """Take step `step` (from 1) on this rank's share. Returns metrics, see `combined`.

        `groups` are the rank's share of what was drawn for this step; none in a stage that reads token shards.
        """
