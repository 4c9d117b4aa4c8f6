"""What a report says of a run in numbers."""

import math

import numpy as np
import pytest

from simplear_rl.report.series import (
    axes,
    curves,
    first_and_last,
    histogram,
    narrowed,
    parts_of,
    phases,
    time_per_phase,
)


def rows(number, **values):
    return [{"step": i + 1} | {name: float(of(i)) for name, of in values.items()} for i in range(number)]


def test_a_thinned_curve_keeps_every_peak():
    values = np.random.default_rng(0).normal(size=5003)
    values[1234], values[4321] = 50, -50
    (curve,) = curves(rows(5003, loss=lambda i: values[i]), ["loss"], limit=100).values()
    assert len(curve["mean"]) == len(curve["low"]) == len(curve["high"]) == 100
    assert max(curve["high"]) == 50 and min(curve["low"]) == -50
    sizes = [part.stop - part.start for part in parts_of(5003, 100)]
    assert sum(sizes) == 5003 and max(sizes) - min(sizes) <= 1
    assert np.average(curve["mean"], weights=sizes) == pytest.approx(values.mean(), abs=1e-5)


def test_a_short_curve_is_whole_and_lacks_only_what_cannot_be_drawn():
    few = rows(4, kl=lambda i: math.nan if i == 1 else i / 3)
    few[2].pop("kl")
    assert curves(few, ["kl", "none"]) == {"kl": {"mean": [0.0, None, None, 1.0]}}


def test_phases_sum_to_the_step():
    row = {"step": 3, "rollout_seconds": 2.0, "update_seconds": 1.0, "step_seconds": 3.5, "loss": 9}
    assert phases(row) == {"rollout": 2, "update": 1, "other": 0.5}
    assert phases({"step": 3, "update_seconds": 1.0}) == {"update": 1}
    assert phases(row | {"drawing_seconds": 9.0}) == phases(row)  # beside the others, with rollout.ahead
    table = time_per_phase([row, row | {"step": 4, "rollout_seconds": 1.0}], limit=1)
    assert table == {"from": [3], "to": [4], "phases": {"rollout": [1.5], "update": [1], "other": [1]}}


def test_axes_count_images_and_seconds():
    found = axes(rows(3, samples=lambda i: 10, step_seconds=lambda i: i + 1, update_seconds=lambda i: 1), None)
    assert {name: list(values) for name, values in found.items()} == {
        "steps": [1, 2, 3],
        "images": [10, 20, 30],
        "seconds": [1, 3, 6],
    }
    found = axes(rows(2, update_seconds=lambda i: 2), 64)
    assert list(found["images"]) == [64, 128] and list(found["seconds"]) == [2, 4]
    assert "images" not in axes(rows(2), None)


def test_a_reward_that_rises_while_diversity_falls_is_warned_of():
    up, down = (lambda i: i / 100), (lambda i: 1 - i / 100)
    assert "reward rose from 0.045 to 0.945" in narrowed(rows(100, reward=up, diversity=down))
    assert narrowed(rows(100, reward=down, diversity=down)) is None
    assert narrowed(rows(100, reward=up, diversity=lambda i: 1 - i / 400)) is None
    assert narrowed(rows(100, reward=up)) is None
    assert first_and_last(rows(1, reward=up), "reward") is None


def test_histograms_share_their_bins_and_count_every_finite_value():
    found = histogram({"step 1": [0.0, 0.5, math.nan], "step 9": [1.0, 1.0]}, bins=2)
    assert found == {"edges": [0, 0.5, 1], "counts": {"step 1": [1, 1], "step 9": [0, 2]}}
