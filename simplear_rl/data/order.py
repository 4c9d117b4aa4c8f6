"""Which items a step works on: a pure function of the seed, so that a run can stop and continue anywhere."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


def items_of_step(step: int, per_step: int, weights: Sequence[float], seed: int) -> np.ndarray:
    """Indices of the `per_step` items of step 0, 1, ...: an epoch has as many places as there are items.

    Items of equal weights come once an epoch, in a fresh random order. Else item i comes n * w_i / sum(w) times,
    rounded down or up at random so that this is its mean over the epochs (systematic resampling).
    """
    places = np.arange(step * per_step, (step + 1) * per_step)
    epochs, offsets = np.divmod(places, len(weights))
    orders = {epoch: _epoch(np.asarray(weights), seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][offset] for epoch, offset in zip(epochs, offsets, strict=True)])


def _epoch(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The items of an epoch, in order."""
    order = np.random.default_rng((seed, epoch)).permutation(len(weights))
    if (weights == weights[0]).all():
        return order
    sums = np.cumsum(weights)
    edges = sums / sums[-1] * len(weights)
    shift = np.random.default_rng((seed, epoch, 1, 1)).random()
    return np.searchsorted(edges, np.arange(len(weights)) + shift, side="right")[order]


def other_items(step: int, per_step: int, weights: Sequence[float], seed: int) -> np.ndarray:
    """Indices of all items that are not those of step 0, 1, ..., in a random order of that step's own.

    Those of larger weight come earlier, as if they were drawn one after the other; those of weight 0 not at all.
    Whoever takes some of them changes the items of no step.
    """
    # Third number: the epochs' orders have none.
    random, chances = np.random.default_rng((seed, step, 1)), np.asarray(weights)
    order = random.permutation(len(weights))
    if (chances != chances[0]).any():
        order = np.flatnonzero(chances)
        order = order[np.argsort(random.exponential(size=len(order)) / chances[order])]
    return order[~np.isin(order, items_of_step(step, per_step, weights, seed))]


def shares(items: int, weights: Sequence[float]) -> list[int]:
    """How many of a run's first `items` items come from each source: proportional to `weights`, summing to `items`.

    No share ever falls as `items` grows: the first source gets its part of all, rounded down, the next one its part
    of what is left, and so on. (Shares rounded each by itself would not add up.)
    """
    counts: list[int] = []
    for i, weight in enumerate(weights[:-1]):
        counts.append(math.floor((items - sum(counts)) * (weight / sum(weights[i:]))))
    return [*counts, items - sum(counts)]


@dataclass(frozen=True)
class Piece:
    """Consecutive places of an epoch whose rows lie in one window."""

    groups: np.ndarray  # the window's row groups, ascending
    rows: np.ndarray  # the rows at those places, counted through `groups`


def pieces(first: int, last: int, sizes: np.ndarray, window: int, seed: int, source: int) -> Iterator[Piece]:
    """Where the rows at places `first` ... `last` - 1 of a source's order are.

    Every row comes once an epoch. The row groups of the source (`sizes` rows each) follow each other in a fresh random
    order every epoch; those that begin within the same `window` rows are one window, and its rows are shuffled. So a
    reader has one window in memory, and a source of up to `window` rows is shuffled as a whole.
    """
    while first < last:
        epoch, place = divmod(first, int(sizes.sum()))
        # Third number: an even one for a source, odd ones for what is drawn with a batch.
        order = np.random.default_rng((seed, epoch, 2 * source, 0, 1)).permutation(len(sizes))
        begins = np.cumsum(sizes[order]) - sizes[order]
        windows = begins // window
        number = int(windows[np.searchsorted(begins, place, side="right") - 1])
        groups = np.sort(order[windows == number])
        shuffled = np.random.default_rng((seed, epoch, 2 * source, number)).permutation(sizes[groups].sum())
        begin = place - begins[windows == number][0]
        rows = shuffled[begin : begin + last - first]
        yield Piece(groups, rows)
        first += len(rows)
