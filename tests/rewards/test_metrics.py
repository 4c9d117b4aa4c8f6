from dataclasses import replace

import numpy as np
import pytest

from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Scores
from simplear_rl.rewards.metrics import learned_rewards, reward_metrics

CLIP = [np.array([0.1, 0.3]), np.array([0.2, 0.6])]
HPS = [np.array([1.0, 2.0]), np.array([3.0, 2.0])]
SKIPPED = Scores({}, np.full(2, np.nan, np.float32), error="reward f: no face")


def groups():
    return [
        Scores({"clip": c, "hpsv2": h}, c + 0.5 * h, truncated=i == 1, clipped={"clip": 0.5 * i})
        for i, (c, h) in enumerate(zip(CLIP, HPS, strict=True))
    ]


def test_each_reward_is_logged_beside_the_weighted_sum():
    metrics = reward_metrics(groups())
    assert metrics["reward_clip"] == pytest.approx(0.3)
    assert metrics["reward_hpsv2"] == pytest.approx(2)
    assert metrics["reward_clip_std"] == pytest.approx(np.std([0.1, 0.3, 0.2, 0.6]))
    assert metrics["reward_clip_std_in_group"] == pytest.approx((0.1 + 0.2) / 2)
    assert metrics["reward"] == pytest.approx(0.3 + 0.5 * 2)
    assert metrics["reward_std_in_group"] == pytest.approx((0.35 + 0.05) / 2)
    assert metrics["reward_clip_clipped"] == 0.25
    assert "reward_hpsv2_clipped" not in metrics
    assert metrics["samples"] == 4
    assert metrics["truncated_prompts"] == 1


def test_correlation_with_the_total_is_that_within_groups():
    metrics = reward_metrics(groups())
    totals = [c + 0.5 * h for c, h in zip(CLIP, HPS, strict=True)]
    within = [np.concatenate([part - part.mean() for part in parts]) for parts in (CLIP, HPS, totals)]
    for name, deviations in ("clip", within[0]), ("hpsv2", within[1]):
        assert metrics[f"reward_{name}_correlation"] == pytest.approx(np.corrcoef(deviations, within[2])[0, 1])
    equal = Scores({"a": np.ones(2), "b": np.array([1.0, 2.0])}, np.array([2.0, 3.0]))
    assert "reward_a_correlation" not in reward_metrics([equal])
    assert reward_metrics([equal])["reward_b_correlation"] == pytest.approx(1)


def test_a_group_that_is_left_out_has_no_part_in_the_means_and_is_counted():
    whole, one_missing = reward_metrics(groups()), reward_metrics([SKIPPED, *groups()])
    assert one_missing.pop("skipped_groups") == 1
    assert whole.pop("skipped_groups") == 0
    assert whole == one_missing
    learned = learned_rewards([SKIPPED, *groups()])
    assert learned[0].tolist() == [0, 0]
    np.testing.assert_array_equal(learned[1:], np.float32([group.total for group in groups()]))
    with pytest.raises(UserError, match="no group of the step could be scored, all 2 are left out: reward f: no face"):
        learned_rewards([SKIPPED, SKIPPED])
    assert learned_rewards([]) == []


def test_diversity_is_the_mean_over_the_groups():
    assert "diversity" not in reward_metrics(groups())
    metrics = reward_metrics([replace(groups()[0], diversity=value) for value in (0.1, 0.3)])
    assert metrics["diversity"] == pytest.approx(0.2)


def test_a_group_has_a_signal_if_what_is_learned_from_differs():
    equal, several = np.ones(2, np.float32), np.arange(2, dtype=np.float32)
    assert Scores({}, several).has_signal
    assert not Scores({}, equal).has_signal
    assert not SKIPPED.has_signal
    assert Scores({}, equal, normalised=several).has_signal  # two rewards that cancel in the plain sum
