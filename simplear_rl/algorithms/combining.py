"""Several rewards as one (GDPO, arXiv 2601.05242)."""

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-4


def normalised_sum(rewards_NG: np.ndarray, weights_N: Sequence[float]) -> np.ndarray:
    """The weighted sum of N rewards of a group, each normalised in it: (r - mean) / (std + 1e-4), float64 [G].

    The standard deviation is that with Bessel's correction. A reward that is equal for all has no part in the sum.
    """
    rewards_NG = rewards_NG.astype(np.float64)
    total_G = np.zeros(rewards_NG.shape[1])
    for reward_G, weight in zip(rewards_NG, weights_N, strict=True):
        if (reward_G != reward_G[0]).any():  # else the mean's rounding error would pose as a signal
            total_G += weight * (reward_G - reward_G.mean()) / (reward_G.std(ddof=1) + EPSILON)
    return total_G


def batch_normalised(sums: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The sums of a batch's groups ([G] each), normalised over all its samples: the advantages of GDPO."""
    every_N = np.concatenate(sums).astype(np.float64)
    spread = every_N.std(ddof=1) + EPSILON if len(every_N) > 1 else 1.0
    return [(sum_G - every_N.mean()) / spread for sum_G in sums]
