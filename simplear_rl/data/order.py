"""Which items a step works on: a pure function of the seed, so that a run can stop and continue anywhere."""

import numpy as np


def items_of_step(step: int, per_step: int, items: int, seed: int) -> np.ndarray:
    """Indices of the `per_step` items of step 0, 1, ...: all items in a fresh random order every epoch."""
    places = np.arange(step * per_step, (step + 1) * per_step)
    epochs, offsets = np.divmod(places, items)
    orders = {epoch: np.random.default_rng((seed, int(epoch))).permutation(items) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)])
