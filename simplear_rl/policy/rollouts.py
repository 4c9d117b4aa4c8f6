"""What goes into the rollout engine and what comes out; both travel between actors."""

from dataclasses import dataclass

import numpy as np

from simplear_rl.policy.sampling import Sampling


@dataclass(frozen=True)
class Prompt:
    """One prompt of a step; `index` is its place in the step's list and part of its samples' seed."""

    index: int
    text: str


@dataclass(frozen=True)
class Rollout:
    """The G samples drawn for one prompt.

    Sample k was drawn with the uniform stream of (*seed, prompt.index, k).
    """

    prompt: Prompt
    prompt_ids: list[int]
    unconditional_ids: list[int] | None  # the other context of guided samples
    codes: np.ndarray  # uint16 [G, T], raster order
    log_probs: np.ndarray  # float32 [G, T], behaviour log-probs over the visual codebook; NaN: not computed
    sampling: Sampling
    weight_version: int
    seed: tuple[int, int]  # run seed, step


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with what the reward and the reference actors said of it."""

    rollout: Rollout
    rewards: np.ndarray  # float32 [G]
    reference_log_probs: np.ndarray  # float32 [G, T]
