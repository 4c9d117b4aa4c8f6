import pytest
import torch

from simplear_rl.algorithms.grpo_loss import clipped_policy_loss, grpo_loss
from simplear_rl.config.learner import AlgorithmConfig, KlConfig


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.5, 2.0, -2.6),  # clipped above: 1.3 * 2
        (0.5, 2.0, -1.0),  # a good sample that became less likely is not clipped
        (0.5, -2.0, 1.6),  # clipped below: 0.8 * 2
        (1.5, -2.0, 3.0),  # a bad sample that became more likely is not clipped
    ],
)
def test_clipping_with_separate_bounds(ratio, advantage, expected):
    loss = clipped_policy_loss(torch.tensor([[ratio]]), torch.tensor([advantage]), 0.2, 0.3)
    assert loss.item() == pytest.approx(expected)


def inputs():
    generator = torch.Generator().manual_seed(0)
    log_probs = (-torch.rand(4, 6, generator=generator)).requires_grad_()
    reference = -torch.rand(4, 6, generator=generator)
    return log_probs, reference, torch.tensor([0.1, 0.2, 0.3, 0.6])


def test_first_step_has_ratio_one_kl_zero_and_the_policy_gradient():
    log_probs, _, rewards = inputs()
    loss, metrics = grpo_loss(log_probs, log_probs.detach(), log_probs.detach(), rewards, AlgorithmConfig())
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["kl"] == 0
    loss.backward()
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(log_probs.grad, -advantages[:, None].expand(4, 6) / 24)


def test_kl_in_the_loss_adds_beta_times_k3():
    log_probs, reference, rewards = inputs()
    without, _ = grpo_loss(log_probs, log_probs.detach(), reference, rewards, AlgorithmConfig(kl=KlConfig(beta=0)))
    loss, metrics = grpo_loss(log_probs, log_probs.detach(), reference, rewards, AlgorithmConfig(kl=KlConfig(beta=0.5)))
    torch.testing.assert_close(loss - without, 0.5 * metrics["kl"])


def test_kl_in_the_reward_changes_the_advantages_and_carries_no_gradient():
    log_probs, reference, rewards = inputs()
    config = AlgorithmConfig(kl=KlConfig(beta=0.5, placement="reward", estimator="k1"), advantage="mean")
    loss, _ = grpo_loss(log_probs, log_probs.detach(), reference, rewards, config)
    loss.backward()
    penalised = rewards - 0.5 * (log_probs - reference).detach().mean(-1)
    advantages = penalised - penalised.mean()
    torch.testing.assert_close(log_probs.grad, -advantages[:, None].expand(4, 6) / 24)


def test_group_of_equal_rewards_is_counted():
    log_probs, reference, _ = inputs()
    _, metrics = grpo_loss(log_probs, log_probs.detach(), reference, torch.ones(4), AlgorithmConfig())
    assert metrics["zero_advantage_groups"] == 1


@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_without_a_reference_the_loss_is_that_of_beta_zero(placement):
    log_probs, reference, rewards = inputs()
    config = AlgorithmConfig(kl=KlConfig(beta=0, placement=placement))
    found = []
    for compared in reference, None:
        log_probs.grad = None
        loss, metrics = grpo_loss(log_probs, log_probs.detach(), compared, rewards, config)
        loss.backward()
        found.append((loss.item(), log_probs.grad, metrics.keys()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] - found[1][2] == {"kl"}
