from itertools import pairwise

import numpy as np
import pytest

from simplear_rl.data.order import items_of_step, other_items, pieces, shares

SIZES = np.array([5, 0, 8, 3, 8, 1])  # rows of each row group; 25 together


def drawn(first, last, window=9, seed=0, source=0, sizes=SIZES):
    """Rows of the source at places first ... last - 1, numbered through all its row groups."""
    begins = np.cumsum(sizes) - sizes
    rows = []
    for piece in pieces(first, last, sizes, window, seed, source):
        rows += np.concatenate([begins[g] + np.arange(sizes[g]) for g in piece.groups])[piece.rows].tolist()
    return rows


@pytest.mark.parametrize("window", [1, 9, 25, 1000])
def test_every_row_comes_once_an_epoch_in_a_fresh_order(window):
    first, second = drawn(0, 25, window), drawn(25, 50, window)
    assert sorted(first) == sorted(second) == list(range(25))
    assert first != second


def test_any_stretch_is_found_without_what_came_before():
    whole = drawn(0, 80)
    assert len(whole) == 80
    assert all(drawn(first, first + 7) == whole[first : first + 7] for first in range(73))


def test_order_is_a_function_of_seed_and_source():
    assert drawn(0, 25) == drawn(0, 25)
    assert len({tuple(drawn(0, 25, seed=seed, source=source)) for seed in (0, 1) for source in (0, 1)}) == 4


def test_a_window_holds_few_row_groups_and_all_their_rows():
    sizes = np.full(100, 10)
    for piece in pieces(0, 1000, sizes, 50, 0, 0):
        assert len(piece.groups) == 5
        assert sorted(piece.rows) == list(range(50))
    assert len(list(pieces(0, 1000, sizes, 50, 0, 0))) == 20


def test_what_fits_one_window_is_shuffled_as_a_whole():
    expected = np.concatenate([items_of_step(step, 5, [1.0] * 25, seed=0) for step in range(12)])
    assert drawn(0, 60, window=25) == expected.tolist()


@pytest.mark.parametrize("weights", [[1.0], [3, 1], [0.5, 0.05, 0.45], [1, 2, 3, 4, 1e-3]])
def test_shares_follow_the_weights_and_never_fall(weights):
    counts = np.array([shares(n, weights) for n in range(3000)])
    assert (counts.sum(axis=1) == np.arange(3000)).all()
    assert all((later >= earlier).all() for earlier, later in pairwise(counts))
    exact = np.arange(3000)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(counts - exact).max() <= len(weights)


def test_other_items_are_all_but_the_steps_own_in_an_order_of_each_step():
    for step in range(6):  # of 4 among 10: step 2 is in two epochs
        own, others = items_of_step(step, 4, [1.0] * 10, seed=0), other_items(step, 4, [1.0] * 10, seed=0)
        assert sorted(others) == sorted(set(range(10)) - set(own))
        assert np.array_equal(others, other_items(step, 4, [1.0] * 10, seed=0))
    orders = {tuple(other_items(step, 4, [1.0] * 100, seed)) for step in range(3) for seed in range(3)}
    assert len(orders) == 9
    assert len(other_items(0, 10, [1.0] * 10, seed=0)) == len(other_items(1, 25, [1.0] * 10, seed=0)) == 0
