import pytest
import torch

from simplear_rl.algorithms.correction import correction_weights
from simplear_rl.algorithms.grpo_loss import grpo_loss
from simplear_rl.config.learner import AlgorithmConfig, CorrectionConfig, KlConfig
from simplear_rl.learning.metrics import combined

OLD = torch.tensor([[-1.0, -2.0, -1.0], [-3.0, -1.0, -1.0]])
BEHAVIOUR = OLD - torch.tensor([[0.5, 1.0, -0.5], [0.1, 0.1, 0.2]])


@pytest.mark.parametrize(
    ("kind", "level", "limit", "expected"),
    [
        ("truncate", "token", 2.0, [[1.6487, 2.0, 0.6065], [1.1052, 1.1052, 1.2214]]),
        ("mask", "token", 2.0, [[1.6487, 0.0, 0.6065], [1.1052, 1.1052, 1.2214]]),
        ("truncate", "sequence", 2.0, [[2.0], [1.4918]]),
        ("mask", "sequence", 2.0, [[0.0], [1.4918]]),
        ("truncate", "sequence", 4.0, [[2.7183], [1.4918]]),
    ],
)
def test_weights(kind, level, limit, expected):
    """Of a sequence: exp of the sum over its tokens."""
    config = CorrectionConfig(kind=kind, level=level, limit=limit)
    weights, metrics = correction_weights(OLD, BEHAVIOUR, config)
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=0, atol=1e-4)
    n = weights.numel()
    assert metrics["correction_mean"] == pytest.approx(weights.mean().item())
    effective = weights.sum() ** 2 / (n * weights.square().sum())
    assert combined([metrics])["correction_ess"] == pytest.approx(effective.item())
    assert metrics["correction_cut"] == pytest.approx((limit == 2.0) / n)


def test_the_default_is_truncated_per_token_at_two():
    assert AlgorithmConfig().correction == CorrectionConfig(kind="truncate", level="token", limit=2.0)


def test_where_engine_and_learner_agree_nothing_is_corrected():
    weights, metrics = correction_weights(OLD, OLD, CorrectionConfig(kind="truncate"))
    assert torch.equal(weights, torch.ones(2, 3))
    assert metrics == {"correction_mean": 1, "correction_square": 1, "correction_cut": 0}
    assert combined([metrics])["correction_ess"] == 1
    assert correction_weights(OLD, BEHAVIOUR, CorrectionConfig(kind="none")) == (None, {})


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rounding_is_not_corrected(level):
    """An engine's last digits depend on the batch that a sample shared; the update must not."""
    noise = 9e-5 * torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])
    weights, _ = correction_weights(OLD, OLD - noise, CorrectionConfig(kind="truncate", level=level))
    assert (weights == 1).all()
    noise[1, 2] = 0.01
    weights, _ = correction_weights(OLD, OLD - noise, CorrectionConfig(kind="truncate", level=level))
    assert weights.flatten()[-1] == pytest.approx(torch.tensor(0.01).exp().item())
    assert (weights.flatten()[:-1] == 1).all()


def test_samples_that_are_all_masked_have_no_effective_size():
    _, metrics = correction_weights(OLD, OLD - 100, CorrectionConfig(kind="mask"))
    assert metrics == {"correction_mean": 0, "correction_square": 0, "correction_cut": 1}
    assert combined([metrics])["correction_ess"] == 0


def test_effective_size_does_not_depend_on_how_images_are_put_together():
    """Of one image alone, whose tokens share a weight, it would be 1."""
    old, behaviour = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)) * 0.05
    found = []
    for size in 8, 2, 1:
        parts = zip(old.split(size), behaviour.split(size), strict=True)
        found.append(combined([correction_weights(*part, CorrectionConfig(level="sequence"))[1] for part in parts]))
    assert found[0]["correction_ess"] < 0.99
    assert found[1] == pytest.approx(found[0]) and found[2] == pytest.approx(found[0])


def test_weights_multiply_the_policy_loss_and_not_the_kl():
    log_probs, reference, advantages = OLD.clone().requires_grad_(), OLD + 0.3, torch.tensor([1.0, -1.0])
    weights, _ = correction_weights(OLD, BEHAVIOUR, CorrectionConfig(kind="truncate"))
    loss, _ = grpo_loss(log_probs, OLD, reference, advantages, AlgorithmConfig(kl=KlConfig(beta=0.5)), weights)
    loss.backward()
    expected = (-weights * advantages[:, None] + 0.5 * (1 - torch.exp(reference - OLD))) / 6
    torch.testing.assert_close(log_probs.grad, expected)


def test_weights_make_the_engines_samples_the_learners():
    """The expected gradient over the engine's draws, taken exactly, is the one over the learner's own draws."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, generator=generator, requires_grad=True)
    engine = torch.log_softmax(logits.detach() + 0.1 * torch.randn(20, generator=generator), -1)
    rewards = torch.randn(20, generator=generator)
    policy = torch.log_softmax(logits, -1)
    weights, _ = correction_weights(policy.detach(), engine, CorrectionConfig(kind="truncate"))
    (expected,) = torch.autograd.grad((policy.exp() * rewards).sum(), logits, retain_graph=True)
    surrogate = torch.exp(policy - policy.detach()) * rewards
    (found,) = torch.autograd.grad((engine.exp() * weights * surrogate).sum(), logits, retain_graph=True)
    (uncorrected,) = torch.autograd.grad((engine.exp() * surrogate).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (uncorrected - expected).abs().max() > 1e-3
