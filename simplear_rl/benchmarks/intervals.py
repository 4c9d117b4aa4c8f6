"""Bootstrap intervals of scores that are means: prompts are resampled, with all their images."""

from collections.abc import Sequence

import numpy as np


def bootstrap_intervals(
    names: Sequence[str], sums_SP: np.ndarray, counts_SP: np.ndarray, seed: int, resamples: int
) -> dict[str, tuple[float, float]]:
    """95 % interval of each of S scores, times 100, from the sum and the number of what it is the mean of, by prompt.

    An interval is over those resamples that have something to average.
    """
    prompts = sums_SP.shape[1]
    times = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a resample has nothing
        samples = 100 * (sums_SP @ times.T) / (counts_SP @ times.T)
    bounds = np.nanquantile(samples, [0.025, 0.975], axis=1).T
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, bounds, strict=True)}
