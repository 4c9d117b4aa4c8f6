import pytest
import torch

from simplear_rl.algorithms.kl import kl_estimate


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_exactly_zero_for_equal_log_probs(estimator):
    log_probs = torch.randn(4, 16) - 5
    assert torch.equal(kl_estimate(log_probs, log_probs.clone(), estimator), torch.zeros(4, 16))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased(estimator):
    generator = torch.Generator().manual_seed(0)
    policy = torch.log_softmax(torch.randn(20, generator=generator), -1)
    reference = torch.log_softmax(torch.randn(20, generator=generator), -1)
    exact = (policy.exp() * (policy - reference)).sum()
    # The expectation over all 20 tokens, taken exactly.
    expected = (policy.exp() * kl_estimate(policy, reference, estimator)).sum()
    torch.testing.assert_close(expected, exact)


def exact_gradients():
    """Logits, policy and reference over 20 tokens; the gradients of KL(policy || reference) and of the reverse."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, generator=generator, requires_grad=True)
    reference = torch.log_softmax(torch.randn(20, generator=generator), -1)
    policy = torch.log_softmax(logits, -1)
    kls = (policy.exp() * (policy - reference)).sum(), (reference.exp() * (reference - policy)).sum()
    return logits, policy, reference, [torch.autograd.grad(kl, logits, retain_graph=True)[0] for kl in kls]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients_in_the_loss(estimator):
    logits, policy, reference, (of_policy, of_reference) = exact_gradients()
    expectation = (policy.exp().detach() * kl_estimate(policy, reference, estimator)).sum()
    (found,) = torch.autograd.grad(expectation, logits)
    torch.testing.assert_close(found, {"k1": torch.zeros(20), "k2": of_policy, "k3": of_reference}[estimator])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradients_in_the_reward(estimator):
    """What the policy gradient descends, with the estimate as a cost that carries no gradient itself."""
    logits, policy, reference, (of_policy, of_reference) = exact_gradients()
    cost = kl_estimate(policy, reference, estimator).detach()
    (found,) = torch.autograd.grad((policy.exp() * cost).sum(), logits)
    if estimator == "k1":
        torch.testing.assert_close(found, of_policy)
    elif estimator == "k3":
        torch.testing.assert_close(found, of_policy - of_reference)
    else:
        assert (found - of_policy).norm() > 0.3 * of_policy.norm()


def test_k3_is_never_negative():
    assert (kl_estimate(torch.randn(1000), torch.randn(1000), "k3") >= 0).all()
