"""Whether one of two paired lists of values is higher."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """B against A on the same prompts."""

    mean_a: float
    mean_b: float
    interval: tuple[float, float]  # 95 %, of the mean difference B - A
    p_value: float  # of no difference, two-sided
    wins: int  # of B, over all images
    ties: int
    losses: int

    @property
    def win_rate(self) -> float:
        """Share of the pairs that B wins; a tie is half a win."""
        return (self.wins + self.ties / 2) / (self.wins + self.ties + self.losses)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"A {self.mean_a:9.4g}  B {self.mean_b:9.4g}  B - A [{low:+.4g}, {high:+.4g}], p {self.p_value:.4f}, "
            f"win rate of B {self.win_rate:.3f}"
        )


def compare(values_a: np.ndarray, values_b: np.ndarray, groups: np.ndarray, resamples: int = 10_000) -> Comparison:
    """The paired bootstrap test (Efron and Tibshirani 1993; Koehn 2004): prompts are resampled with all their pairs.

    The p-value is twice the share of resamples whose mean difference is on the other side of zero, or on it; never
    less than what so many resamples can show.

    Args:
        values_a: of A's images, float [N].
        values_b: of B's, in the same order.
        groups: the prompt of each pair, int [N].
        resamples: how many; the random numbers are always the same.
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
    other_side = min((means <= 0).mean(), (means >= 0).mean())
    return Comparison(
        float(values_a.mean(dtype=np.float64)),
        float(values_b.mean(dtype=np.float64)),
        (float(low), float(high)),
        float(min(1.0, max(2 * other_side, 1 / resamples))),
        int((differences > 0).sum()),
        int((differences == 0).sum()),
        int((differences < 0).sum()),
    )
