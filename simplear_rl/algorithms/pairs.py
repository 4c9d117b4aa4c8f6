"""Which images of a prompt are compared with which."""

import numpy as np


def preference_pairs(rewards_G: np.ndarray, margin: float | None) -> np.ndarray:
    """Winner and loser of each pair of one prompt's images, int64 [pairs, 2]; equal rewards make no pair.

    `margin` None: the best against the worst, of several equal ones the first. Else all pairs whose rewards differ by
    more than `margin`.
    """
    if margin is None:
        best, worst = int(rewards_G.argmax()), int(rewards_G.argmin())
        return np.array([[best, worst]] if rewards_G[best] > rewards_G[worst] else [], dtype=np.int64).reshape(-1, 2)
    return np.argwhere(rewards_G[:, None] - rewards_G[None, :] > margin)
