"""Whether one of two paired lists of values is higher."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """B against A on the same prompts."""

    mean_a: float
    mean_b: float
    interval: tuple[float, float] | None  # 95 %, of the mean difference B - A; None of a single prompt
    p_value: float  # of no difference, two-sided
    wins: int  # of B, over all images
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """Share of the pairs that B wins; a tie is half a win."""
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)

    def __str__(self) -> str:
        between = "of one prompt, no interval" if self.interval is None else "[{:+.4g}, {:+.4g}]".format(*self.interval)
        return (
            f"A {self.mean_a:9.4g}  B {self.mean_b:9.4g}  B - A {between}, p {self.p_value:.4f}, "
            f"win rate of B {self.win_rate:.3f}"
        )


def compare(values_a: np.ndarray, values_b: np.ndarray, groups: np.ndarray, resamples: int = 10_000) -> Comparison:
    """A paired randomization test (Fisher 1935; Noreen 1989), and a bootstrap interval (Efron and Tibshirani 1993).

    Were A and B alike, then in every prompt they could change places. The p-value is the share of such exchanges whose
    mean difference is as far from zero as the one that was found: of all exchanges where there are not too many. So few
    prompts show little: of n, no p-value is below 2^(1 - n). For the interval prompts are resampled with all their
    pairs; with fewer than ten it is too narrow.

    Args:
        values_a: of A's images, float [N].
        values_b: of B's, in the same order.
        groups: the prompt of each pair, int [N].
        resamples: how many, and exchanges; the random numbers are always the same.
    """
    differences = values_b.astype(np.float64) - values_a
    _, place = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(place, differences), np.bincount(place)
    number = len(sums)
    means = np.empty(resamples)
    random = np.random.default_rng(0)
    for i in range(resamples):
        drawn = random.integers(number, size=number)
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(
        float(values_a.mean(dtype=np.float64)),
        float(values_b.mean(dtype=np.float64)),
        (float(low), float(high)) if number > 1 else None,
        _p_value(sums, resamples, random),
        int((differences > 0).sum()),
        int((differences == 0).sum()),
        int((differences < 0).sum()),
    )


def _p_value(sums: np.ndarray, exchanges: int, random: np.random.Generator) -> float:
    """Of the sums of the prompts' differences, float [P]: all 2^P signs, or so many random ones and the given one."""
    number = len(sums)
    signs: Iterable[Sequence[int] | np.ndarray]
    if 2**number <= exchanges:
        signs = product((-1, 1), repeat=number)
    else:
        signs = chain([np.ones(number)], (2 * random.integers(2, size=number) - 1 for _ in range(exchanges)))
    return float(np.mean([abs(sums @ np.array(one)) >= abs(sums.sum()) * (1 - 1e-9) for one in signs]))
