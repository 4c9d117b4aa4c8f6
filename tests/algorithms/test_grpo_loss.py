import pytest
import torch

from simplear_rl.algorithms.advantages import no_signal
from simplear_rl.algorithms.grpo_loss import advantages_with_kl, grpo_loss
from simplear_rl.algorithms.policy_losses import clipped_policy_loss
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
    found = clipped_policy_loss(torch.tensor([[ratio]]), torch.tensor([advantage]), 0.2, 0.3)
    assert found.loss.item() == pytest.approx(expected)


def inputs():
    generator = torch.Generator().manual_seed(0)
    log_probs = (-torch.rand(4, 6, generator=generator)).requires_grad_()
    reference = -torch.rand(4, 6, generator=generator)
    return log_probs, reference, torch.tensor([0.1, 0.2, 0.3, 0.6])


def loss_of(log_probs, old, reference, rewards, config):
    advantages = advantages_with_kl(rewards, old, reference, config)
    return grpo_loss(log_probs, old, reference, advantages, config)


def test_first_step_has_ratio_one_kl_zero_and_the_policy_gradient():
    log_probs, _, rewards = inputs()
    loss, metrics = loss_of(log_probs, log_probs.detach(), log_probs.detach(), rewards, AlgorithmConfig())
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["kl"] == 0
    loss.backward()
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(log_probs.grad, -advantages[:, None].expand(4, 6) / 24)


def test_kl_in_the_loss_adds_beta_times_k3():
    log_probs, reference, rewards = inputs()
    without, _ = loss_of(log_probs, log_probs.detach(), reference, rewards, AlgorithmConfig(kl=KlConfig(beta=0)))
    loss, metrics = loss_of(log_probs, log_probs.detach(), reference, rewards, AlgorithmConfig(kl=KlConfig(beta=0.5)))
    torch.testing.assert_close(loss - without, 0.5 * metrics["kl"])


def in_the_reward(beta, **values):
    return AlgorithmConfig(kl=KlConfig(beta=beta, placement="reward", estimator="k1"), **values)


def test_kl_in_the_reward_is_the_sum_over_the_tokens_and_carries_no_gradient():
    """The paper's R = r - beta * KL, where KL = log policy(image) - log reference(image)."""
    log_probs, reference, rewards = inputs()
    loss, metrics = loss_of(log_probs, log_probs.detach(), reference, rewards, in_the_reward(0.5, advantage="mean"))
    loss.backward()
    penalised = rewards - 0.5 * (log_probs - reference).detach().sum(-1)
    advantages = penalised - penalised.mean()
    torch.testing.assert_close(log_probs.grad, -advantages[:, None].expand(4, 6) / 24)
    torch.testing.assert_close(metrics["kl"], (log_probs - reference).detach().mean())


def test_kl_in_the_reward_is_that_of_rloo():
    """REINFORCE leave-one-out (arXiv 2402.14740): its baseline makes advantages G / (G - 1) as large, its loss sums."""
    log_probs, reference, rewards = inputs()
    penalised = rewards - 0.3 * (log_probs - reference).detach().sum(-1)
    baselines = (penalised.sum() - penalised) / 3
    ratio = torch.exp(log_probs.sum(-1) - log_probs.detach().sum(-1))
    (expected,) = torch.autograd.grad(-(ratio * (penalised - baselines)).mean(), log_probs)
    loss, _ = loss_of(log_probs, log_probs.detach(), reference, rewards, in_the_reward(0.3, advantage="mean"))
    (found,) = torch.autograd.grad(loss * 6 * 4 / 3, log_probs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_kl_in_the_reward_is_no_reason_to_divide_by_its_spread():
    log_probs, reference, rewards = inputs()
    loss, _ = loss_of(log_probs, log_probs.detach(), reference, rewards, in_the_reward(0.5, advantage="std"))
    loss.backward()
    kl = (log_probs - reference).detach().sum(-1)
    advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4) - 0.5 * (kl - kl.mean())
    torch.testing.assert_close(log_probs.grad, -advantages[:, None].expand(4, 6) / 24)


@pytest.mark.parametrize("advantage", ["std", "mean"])
def test_a_group_of_equal_rewards_moves_by_its_kl_alone(advantage):
    log_probs, reference, _ = inputs()
    config = in_the_reward(1e-3, advantage=advantage)
    loss, _ = loss_of(log_probs, log_probs.detach(), reference, torch.full((4,), 0.1), config)
    loss.backward()
    kl = (log_probs - reference).detach().sum(-1)
    torch.testing.assert_close(log_probs.grad, (1e-3 * (kl - kl.mean()))[:, None].expand(4, 6) / 24)


def test_kl_in_the_reward_is_that_of_the_batchs_start():
    """Further updates move the policy, not the reward."""
    log_probs, reference, rewards = inputs()
    old = log_probs.detach() - 0.01
    loss, _ = loss_of(log_probs, old, reference, rewards, in_the_reward(0.5, advantage="mean"))
    loss.backward()
    penalised = rewards - 0.5 * (old - reference).sum(-1)
    advantages = (penalised - penalised.mean())[:, None]
    torch.testing.assert_close(log_probs.grad, -advantages * torch.exp(log_probs - old).detach() / 24)


def test_kl_in_the_loss_has_the_weight_of_the_samples():
    """Further updates: the samples are the old policy's, and the KL is the current one's."""
    log_probs, reference, rewards = inputs()
    old = log_probs.detach() + 0.1 * torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    gradients = []
    for beta in 0, 0.5:
        loss, _ = loss_of(log_probs, old, reference, rewards, AlgorithmConfig(kl=KlConfig(beta=beta)))
        gradients += torch.autograd.grad(loss, log_probs)
    kl_gradient = 1 - torch.exp(reference - log_probs.detach())  # of k3
    expected = 0.5 * torch.exp(log_probs.detach() - old) * kl_gradient / 24
    torch.testing.assert_close(gradients[1] - gradients[0], expected)


@pytest.mark.parametrize(
    ("placement", "estimator", "reason"),
    [
        ("loss", "k1", "gradient is 0 in expectation; set algorithm.kl.estimator to k2 or k3, or .*placement to rew"),
        ("reward", "k2", "k2 in the reward .* set algorithm.kl.estimator to k1"),
        ("reward", "k3", "k3 in the reward .* set algorithm.kl.estimator to k1"),
    ],
)
def test_estimators_that_do_not_regularise_are_refused(placement, estimator, reason):
    with pytest.raises(ValueError, match=reason):
        KlConfig(placement=placement, estimator=estimator)


def test_the_estimator_fits_the_placement_by_default():
    assert KlConfig().estimator == KlConfig(placement="loss").estimator == "k3"
    assert KlConfig(placement="reward").estimator == "k1"


def test_groups_of_equal_rewards():
    assert no_signal(torch.full((4,), 0.1)) and not no_signal(torch.tensor([0.1, 0.1, 0.2]))


@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_without_a_reference_the_loss_is_that_of_beta_zero(placement):
    log_probs, reference, rewards = inputs()
    config = AlgorithmConfig(kl=KlConfig(beta=0, placement=placement))
    found = []
    for compared in reference, None:
        log_probs.grad = None
        loss, metrics = loss_of(log_probs, log_probs.detach(), compared, rewards, config)
        loss.backward()
        found.append((loss.item(), log_probs.grad, metrics.keys()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][2] - found[1][2] == {"kl"}


def test_clip_fractions_count_what_loses_its_gradient():
    """A ratio beyond a bound is clipped only where it went the way that the advantage asks for."""
    ratio = torch.tensor([[0.5, 1.0, 1.5, 1.5], [0.5, 0.5, 0.5, 1.5]])
    log_probs = ratio.log().requires_grad_()
    config = AlgorithmConfig(kl=KlConfig(beta=0), advantage="mean")
    loss, metrics = loss_of(log_probs, torch.zeros(2, 4), None, torch.tensor([1.0, 0.0]), config)
    loss.backward()
    assert (log_probs.grad == 0).tolist() == [[False, False, True, True], [True, True, True, False]]
    assert metrics["clip_high_fraction"] == 2 / 8
    assert metrics["clip_low_fraction"] == 3 / 8


def test_the_entropy_bonus_is_taken_from_the_loss():
    log_probs, reference, rewards = inputs()
    entropy = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses = []
    for bonus in 0.0, 0.5:
        config = AlgorithmConfig(entropy_bonus=bonus)
        advantages = advantages_with_kl(rewards, log_probs.detach(), reference, config)
        loss, metrics = grpo_loss(log_probs, log_probs.detach(), reference, advantages, config, entropy_GT=entropy)
        assert metrics["loss"] == loss
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0] - 0.5 * entropy.mean())
    (gradient,) = torch.autograd.grad(losses[1], entropy)
    torch.testing.assert_close(gradient, torch.full((4, 6), -0.5 / 24))
    assert torch.autograd.grad(losses[0], entropy, allow_unused=True) == (None,)
