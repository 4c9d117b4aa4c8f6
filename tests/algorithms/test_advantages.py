import torch

from simplear_rl.algorithms.advantages import group_advantages


def test_std_form_is_the_published_one():
    rewards = torch.tensor([0.1, 0.4, 0.2, 0.5])
    expected = (rewards - 0.3) / (torch.tensor([0.1, 0.4, 0.2, 0.5]).std() + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, "std"), expected)


def test_mean_form_keeps_the_scale_of_the_rewards():
    rewards = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(group_advantages(rewards, "mean"), torch.tensor([-2.0, -1.0, 3.0]))


def test_equal_rewards_carry_no_signal_at_all():
    # The mean of three 0.1 is not exactly 0.1 in float32: a rounding error must not be blown up by the division.
    for form in "std", "mean":
        assert group_advantages(torch.full((3,), 0.1), form).tolist() == [0.0, 0.0, 0.0]
