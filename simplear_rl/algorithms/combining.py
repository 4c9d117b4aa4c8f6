"""Several rewards as one (GDPO, arXiv 2601.05242)."""

from collections.abc import Sequence

import numpy as np
import torch

from simplear_rl.algorithms.advantages import group_advantages


def normalised_sum(rewards_NG: np.ndarray, weights_N: Sequence[float]) -> np.ndarray:
    """The weighted sum of N rewards of a group, each normalised in it: (r - mean) / (std + 1e-4), float64 [G].

    The standard deviation is that with Bessel's correction. A reward that is equal for all has no part in the sum.
    """
    total_G = np.zeros(rewards_NG.shape[1])
    for reward_G, weight in zip(rewards_NG, weights_N, strict=True):
        total_G += weight * _normalised(reward_G)
    return total_G


def batch_normalised(sums: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The sums of a batch's groups ([G] each), normalised over all its samples: the advantages of GDPO."""
    return np.split(_normalised(np.concatenate(sums)), np.cumsum([len(sum_G) for sum_G in sums])[:-1])


def _normalised(values_N: np.ndarray) -> np.ndarray:
    return group_advantages(torch.from_numpy(values_N.astype(np.float64)), "std").numpy()
