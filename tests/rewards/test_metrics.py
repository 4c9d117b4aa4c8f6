import numpy as np
import pytest

from simplear_rl.rewards.metrics import reward_metrics


def test_each_reward_is_logged_beside_the_weighted_sum():
    clip = [np.array([0.1, 0.3]), np.array([0.2, 0.6])]
    hps = [np.array([1.0, 2.0]), np.array([3.0, 4.0])]
    cut = [np.zeros(2), np.ones(2)]
    groups = [
        {"clip": c, "hpsv2": h, "total": c + 0.5 * h, "truncated": t} for c, h, t in zip(clip, hps, cut, strict=True)
    ]
    metrics = reward_metrics(groups)
    assert metrics["reward_clip"] == pytest.approx(0.3)
    assert metrics["reward_hpsv2"] == pytest.approx(2.5)
    assert metrics["reward_clip_std"] == pytest.approx(np.std([0.1, 0.3, 0.2, 0.6]))
    assert metrics["reward"] == pytest.approx(0.3 + 0.5 * 2.5)
    assert metrics["reward_std_in_group"] == pytest.approx((0.35 + 0.45) / 2)
    assert metrics["samples"] == 4
    assert metrics["truncated_prompts"] == 1


def test_diversity_is_the_mean_over_the_groups():
    group = {"clip": np.zeros(2), "total": np.zeros(2), "truncated": np.zeros(2)}
    assert "diversity" not in reward_metrics([group])
    metrics = reward_metrics([group | {"diversity": np.full(2, value)} for value in (0.1, 0.3)])
    assert metrics["diversity"] == pytest.approx(0.2)
    assert "reward_diversity" not in metrics
