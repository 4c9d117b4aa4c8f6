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


def test_k2_gradient_is_that_of_the_kl():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, generator=generator, requires_grad=True)
    reference = torch.log_softmax(torch.randn(20, generator=generator), -1)
    policy = torch.log_softmax(logits, -1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    (sampled,) = torch.autograd.grad((policy.exp().detach() * kl_estimate(policy, reference, "k2")).sum(), logits)
    torch.testing.assert_close(sampled, exact)


def test_k3_is_never_negative():
    assert (kl_estimate(torch.randn(1000), torch.randn(1000), "k3") >= 0).all()
