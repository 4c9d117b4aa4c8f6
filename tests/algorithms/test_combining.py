"""GDPO against TRL 1.16 (`multi_objective_aggregation="normalize_then_sum"`).

Its values stand here, computed in float64; only its factor n / (n - 1) is rounded to float32 there.
"""

import numpy as np
import pytest
import torch

from simplear_rl.algorithms.advantages import group_advantages
from simplear_rl.algorithms.combining import batch_normalised, normalised_sum

WEIGHTS = [1.0, 0.5, 2.0]
TRL = [
    0.92135004, 0.31987493, -0.37694606, -0.86427891, -1.94365446, -0.237404, 0.86756272, 1.31349575, -0.62542187,
    -0.10369604, -0.67919945, 1.40831735,
]  # fmt: skip
TRL_WITH_A_REWARD_THAT_IS_EQUAL_IN_A_GROUP = [
    0.01161436, -0.13555687, 0.93002463, -0.80608211, -1.97596489, -0.24135049, 0.88198468, 1.3353307, -0.6358186,
    -0.10541983, -0.69049015, 1.43172858,
]  # fmt: skip


def random_rewards() -> np.ndarray:
    """Three rewards of three groups of four samples, on scales of their own: [3 groups, 3 rewards, 4]."""
    rewards = np.random.default_rng(0).normal(size=(12, 3)) * [1, 10, 0.01] + [0, 5, 0.3]
    return rewards.astype(np.float32).reshape(3, 4, 3).transpose(0, 2, 1)


@pytest.mark.parametrize(
    ("equal", "expected"), [(False, TRL), (True, TRL_WITH_A_REWARD_THAT_IS_EQUAL_IN_A_GROUP)], ids=["random", "equal"]
)
def test_advantages_are_those_of_trl(equal, expected):
    rewards = random_rewards()
    if equal:
        rewards[0, 2] = 0.25
    advantages = batch_normalised([normalised_sum(group, WEIGHTS) for group in rewards])
    np.testing.assert_allclose(np.concatenate(advantages), expected, atol=1e-7)


def test_the_scale_of_a_reward_does_not_matter_and_its_weight_does():
    rewards = random_rewards()[0]
    larger = rewards * np.float32([[1], [1000], [1]])
    np.testing.assert_allclose(normalised_sum(larger, WEIGHTS), normalised_sum(rewards, WEIGHTS), atol=1e-3)
    assert np.abs(normalised_sum(rewards, [1, 5, 2]) - normalised_sum(rewards, WEIGHTS)).max() > 1


def test_rewards_that_are_all_equal_carry_no_signal():
    equal = np.full((2, 8), 0.1, np.float32)
    assert not normalised_sum(equal, [1, 1]).any()
    assert not batch_normalised([normalised_sum(equal, [1, 1])])[0].any()


def test_the_learner_changes_nothing_more_with_the_advantage_that_goes_with_gdpo():
    for advantages in batch_normalised([normalised_sum(group, WEIGHTS) for group in random_rewards()]):
        torch.testing.assert_close(group_advantages(torch.from_numpy(advantages), "mean"), torch.from_numpy(advantages))
