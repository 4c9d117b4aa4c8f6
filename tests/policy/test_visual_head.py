"""Logits of bfloat16 weights: as exact as float32 sums are."""

import torch

from simplear_rl.policy.visual_head import visual_logits


def test_products_of_bfloat16_are_kept_in_float32():
    torch.manual_seed(0)
    hidden_GTH, head_CH = 5 * torch.randn(2, 3, 256).bfloat16(), torch.randn(100, 256).bfloat16()
    exact = hidden_GTH.double() @ head_CH.double().T
    logits = visual_logits(hidden_GTH, head_CH)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-4)
    assert ((hidden_GTH @ head_CH.T).double() - exact).abs().max() > 0.1


def test_gradients_are_those_of_the_product():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 64).bfloat16().requires_grad_(), torch.randn(10, 64).bfloat16().requires_grad_()]
    weights = torch.randn(2, 3, 10)
    gradients = torch.autograd.grad((visual_logits(*inputs) * weights).sum(), inputs)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad((exact[0] @ exact[1].T * weights).sum(), exact)
    for found, right in zip(gradients, expected, strict=True):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.double(), right, rtol=2e-2, atol=5e-2)


def test_float32_is_the_plain_product():
    hidden_NH, head_CH = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.equal(visual_logits(hidden_NH, head_CH), hidden_NH @ head_CH.T)
