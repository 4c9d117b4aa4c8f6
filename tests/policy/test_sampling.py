import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TopKLogitsWarper, TopPLogitsWarper

from simplear_rl.policy.sampling import Sampling, draw_codes, entropy, sampling_log_probs, uniform_stream


def test_stream_depends_on_every_part_of_the_seed_and_nothing_else():
    assert np.array_equal(uniform_stream((0, 1, 2, 3), 64), uniform_stream([0, 1, 2, 3], 64))
    assert np.array_equal(uniform_stream((0, 1, 2, 3), 64), uniform_stream((0, 1, 2, 3), 128)[:64])
    streams = {tuple(uniform_stream(seed, 4)) for seed in np.ndindex(3, 3, 3, 3)}
    assert len(streams) == 81


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05])
    uniforms = torch.from_numpy(uniform_stream((7,), 20_000))
    codes, _ = draw_codes(probabilities.log().repeat(len(uniforms), 1), uniforms)
    counts = torch.bincount(codes, minlength=5).numpy()
    assert counts[2] == 0
    possible = [0, 1, 3, 4]
    assert chisquare(counts[possible], probabilities.numpy()[possible] * 20_000).pvalue > 0.01


def test_edges_of_the_unit_interval():
    log_probs = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log().repeat(3, 1)
    drawn, _ = draw_codes(log_probs, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert drawn.tolist() == [1, 2, 2]


@pytest.mark.parametrize("codebook_size", [5, 64, 997, 1000, 64_000])  # 997 is prime
def test_draws_and_their_log_probs_are_those_of_a_cdf_in_float64(codebook_size):
    """But where a uniform lies within rounding of a code's edge; a quarter of the codes has probability 0."""
    generator = torch.Generator().manual_seed(codebook_size)
    rows = 50 if codebook_size == 64_000 else 2000
    logits = torch.randn(rows, codebook_size, generator=generator) * 3 + 20
    logits[:, 1::4] = -torch.inf
    uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
    codes, log_probs = draw_codes(logits.clone(), uniforms)
    expected = logits.double().log_softmax(-1)
    edges = torch.nn.functional.pad(expected.exp().cumsum(-1), (1, 0))
    low, high = edges.gather(-1, codes[:, None] + torch.tensor([0, 1])).T
    assert ((low - 1e-7 <= uniforms) & (uniforms <= high + 1e-7)).all()
    torch.testing.assert_close(log_probs.double(), expected.gather(-1, codes[:, None])[:, 0], rtol=0, atol=5e-6)


def test_top_k_of_the_whole_codebook_is_no_top_k():
    """In float32 a sum over 64,000 probabilities reaches 1 long before the last one."""
    logits = torch.randn(4, 64_000, generator=torch.Generator().manual_seed(0)) * 2
    every = sampling_log_probs(logits, Sampling(top_k=64_000))
    assert torch.equal(every, sampling_log_probs(logits, Sampling()))
    assert (sampling_log_probs(logits, Sampling(top_k=50_000)).isfinite().sum(-1) == 50_000).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(50, 1.0), (0, 0.9), (0, 0.3), (60, 0.8), (200, 0.99)])
def test_supports_are_those_of_transformers(top_k, top_p):
    """10,000 rows of 200 codes; Transformers sums the same float32 log-probs in float64.

    Rows are compared sorted: of two codes that are equally likely, either may be the last one.
    """
    log_probs = torch.randn(10_000, 200, generator=torch.Generator().manual_seed(1)).mul(3).log_softmax(-1)
    warped = log_probs.double()
    if top_k:
        warped = TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(None, warped)
    found = sampling_log_probs(log_probs, Sampling(top_k=top_k, top_p=top_p)).sort(-1).values
    expected = warped.log_softmax(-1).sort(-1).values
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_top_p_over_a_large_codebook():
    logits = torch.randn(20, 64_000, generator=torch.Generator().manual_seed(2)) * 2
    warped = TopPLogitsWarper(0.999)(None, torch.log_softmax(logits, dim=-1).double())
    found = sampling_log_probs(logits, Sampling(top_p=0.999))
    assert torch.equal(found.isfinite().sum(-1), warped.isfinite().sum(-1))


def test_entropy_and_its_gradient_are_those_of_the_dense_distribution():
    logits = (3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    log_probs = torch.log_softmax(logits, -1)
    found, expected = entropy(log_probs), torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(found, expected)
    # By hand: the derivative for a logit is -p (log p + entropy).
    by_hand = -log_probs.exp() * (log_probs + expected[:, None])
    for value in found, expected:
        torch.testing.assert_close(torch.autograd.grad(value.sum(), logits, retain_graph=True)[0], by_hand)


def test_entropy_of_certain_and_of_even_codes():
    assert entropy(torch.log_softmax(torch.tensor([0.0, 300.0, -300.0]), -1)) == 0
    assert entropy(torch.full((64_000,), 1 / 64_000).log()) == pytest.approx(np.log(64_000), abs=1e-4)
