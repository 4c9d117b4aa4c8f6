"""What goes into an engine and what comes out; all of it travels between actors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from simplear_rl.policy.sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """One prompt of a step; `index` is its place in the step's list and part of its samples' seed."""

    index: int
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)  # the others of its row in the prompts file


@dataclass(frozen=True)
class Rollout:
    """The G samples drawn for one prompt."""

    prompt: Prompt
    prompt_ids: list[int]
    unconditional_ids: list[int] | None  # the other context of guided samples
    codes: np.ndarray  # uint16 [G, T], raster order
    log_probs: np.ndarray  # float32 [G, T], behaviour log-probs over the visual codebook; NaN: not computed
    sampling: Sampling
    weight_version: int
    seed: int  # see Draw
    step: int

    def samples(self, rows: slice) -> "Rollout":
        """Some of the samples."""
        return replace(self, codes=self.codes[rows], log_probs=self.log_probs[rows])


@dataclass(frozen=True)
class Draw:
    """A request to an engine: `samples` images for each prompt."""

    prompts: Sequence[Prompt]
    samples: int  # G
    seed: int  # of the run
    step: int
    sampling: Sampling  # with guidance every image is decoded in two contexts
    negative_prompt: str | None = None  # caption of the unconditional context; None: training's null prompt
    negative_prefix: bool = True  # whether the policy's prefix stands before it

    def prompts_at_once(self, contexts: int) -> int:
        """The prompts whose images are decoded together in so many contexts; one at the least."""
        images = self.samples * (1 if self.sampling.guidance_scale == 1 else 2)
        return max(1, contexts // images)

    def stream_seed(self, prompt: Prompt, sample: int) -> tuple[int, int, int, int]:
        """Of the uniform stream that draws a sample, see `uniform_stream`."""
        return self.seed, self.step, prompt.index, sample

    def rollout(
        self,
        prompt: Prompt,
        prompt_ids: list[int],
        unconditional_ids: list[int] | None,
        codes: np.ndarray,
        log_probs: np.ndarray,
        weight_version: int,
    ) -> Rollout:
        """What was drawn for one of the prompts."""
        drawn = codes.astype(np.uint16), log_probs.astype(np.float32)
        return Rollout(
            prompt, prompt_ids, unconditional_ids, *drawn, self.sampling, weight_version, self.seed, self.step
        )


@dataclass(frozen=True)
class Scores:
    """What a reward actor says of the G samples of a group."""

    rewards: Mapping[str, np.ndarray]  # float32 [G] by name, within their bounds; none of a group that is left out
    total: np.ndarray  # float32 [G], their weighted sum; NaN: the group is left out
    normalised: np.ndarray | None = None  # float32 [G], the sum of `aggregate: gdpo`
    truncated: bool = False  # whether a model read only the beginning of the prompt
    clipped: Mapping[str, float] = field(default_factory=dict)  # share of a reward's scores beyond its bounds
    diversity: float | None = None  # of the images in the features of the reward models; None: none has features
    error: str | None = None  # why the group is left out

    @property
    def learned(self) -> np.ndarray:
        """What the policy learns from, [G]."""
        return self.total if self.normalised is None else self.normalised

    @property
    def has_signal(self) -> bool:
        """Whether the policy can learn from the group: it is not left out, and its rewards are not all equal."""
        return self.error is None and bool((self.learned != self.learned[0]).any())


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with what the reward and the reference actors said of it."""

    rollout: Rollout
    rewards: np.ndarray  # float32 [G], see learned_rewards
    reference_log_probs: np.ndarray | None  # float32 [G, T]; None: there is no reference

    def samples(self, rows: slice) -> "ScoredRollout":
        """Some of the samples."""
        reference = self.reference_log_probs
        return ScoredRollout(
            self.rollout.samples(rows), self.rewards[rows], None if reference is None else reference[rows]
        )


def passes(groups: int, samples: int, micro_batch: int | None) -> list[list[tuple[int, slice]]]:
    """What goes through the policy together, of `groups` with so many samples each: numbers of groups and rows of each.

    These are whole groups with `micro_batch` samples in all, or parts of one group. None: a group at a time.
    """
    size = micro_batch or samples
    if size < samples:
        return [[(i, slice(row, row + size))] for i in range(groups) for row in range(0, samples, size)]
    together, rows = size // samples, slice(0, samples)
    return [[(i, rows) for i in range(first, min(first + together, groups))] for first in range(0, groups, together)]
