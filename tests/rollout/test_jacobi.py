"""Speculative Jacobi Decoding draws from exactly the distribution of the plain loop, in fewer passes."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.log_probs import hidden_states
from simplear_rl.policy.model import load_policy, random_policy, word_tokenizer
from simplear_rl.policy.sampling import Sampling, draw_codes, sampling_log_probs
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.rollout import jacobi
from simplear_rl.rollout.jacobi import sample_codes_jacobi

GUIDED = Sampling(guidance_scale=2.0)
TRUNCATED = Sampling(temperature=1.2, top_k=2, top_p=0.9, guidance_scale=1.5)


def load_peaked(folder, factor):
    """An untrained policy is nearly uniform; larger weights make it peaked, and its codes depend on each other."""
    model, encode = load_policy(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(factor)
    return model, encode, read_layout(folder)


@pytest.fixture(scope="module")
def peaked(policy):
    """16 tokens, 100 codes."""
    return load_peaked(policy, 6)


@pytest.fixture(scope="module")
def enumerable(tmp_path_factory):
    """5 tokens, 3 codes: 243 images."""
    folder = tmp_path_factory.mktemp("enumerable")
    geometry = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    tokenizer = word_tokenizer(["a", "red", "circle"])
    random_policy(folder, tokenizer, codebook_size=3, grid=(1, 5), prompt_prefix="", geometry=geometry, seed=4)
    return load_peaked(folder, 12)


def smallest_p_value(model, encode, layout, sampling, window, images=12_000):
    """Of chi-square tests of the first 1, 2, ... T codes together against their exact distribution."""
    prompt, null = encode("a red circle"), encode.null
    every_ET = torch.tensor(list(itertools.product(range(layout.codebook_size), repeat=layout.tokens)))
    with torch.no_grad():
        head = model.lm_head.weight[layout.visual_offset : layout.vocabulary_size]
        logits = [hidden_states(model, [(ids, every_ET)], layout) @ head.T for ids in (prompt, null)]
    log_probs_ETC = sampling_log_probs(guided_logits(*logits, sampling.guidance_scale), sampling)
    log_probs_ET = log_probs_ETC.gather(-1, every_ET.unsqueeze(-1)).squeeze(-1)
    seeds = [(0, window, i) for i in range(images)]
    prompts, nulls = [prompt] * images, [null] * images
    codes_BT, _ = sample_codes_jacobi(model, prompts, layout, seeds, sampling, nulls, window)
    p_values = []
    for length in range(1, layout.tokens + 1):
        after = layout.codebook_size ** (layout.tokens - length)
        expected = log_probs_ET[::after, :length].double().sum(-1).exp().numpy() * images
        index = codes_BT[:, :length] @ layout.codebook_size ** torch.arange(length - 1, -1, -1)
        counts = torch.bincount(index, minlength=len(expected)).numpy()
        if counts[expected == 0].any():
            return 0.0
        rare = expected < 5  # together one cell of the test
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
        possible = expected > 0
        p_values.append(chisquare(counts[possible], expected[possible] * images / expected.sum()).pvalue)
    return min(p_values)


@pytest.mark.parametrize("sampling", [GUIDED, TRUNCATED], ids=["guided", "truncated"])
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_images_follow_the_exact_distribution(enumerable, sampling, window):
    assert smallest_p_value(*enumerable, sampling, window) > 0.001


true_redraw = jacobi.redraw


def force_the_first_draft(drafts_BW, q_BWC, p_BWC, uniforms_B2W):
    tokens_BW, kept_BW = true_redraw(drafts_BW, q_BWC, p_BWC, uniforms_B2W)
    if drafts_BW.shape[1] > 1:  # the pass over the prompt has no draft worth the name
        tokens_BW[:, 0], kept_BW[:, 0] = drafts_BW[:, 0], True
    return tokens_BW, kept_BW


def replace_from_p(drafts_BW, q_BWC, p_BWC, uniforms_B2W):
    _, kept_BW = true_redraw(drafts_BW, q_BWC, p_BWC, uniforms_B2W)
    drawn_BW = draw_codes(p_BWC.log().flatten(0, 1), uniforms_B2W[:, 1].flatten())[0].view_as(drafts_BW)
    return torch.where(kept_BW, drafts_BW, drawn_BW), kept_BW


@pytest.mark.parametrize("fault", [force_the_first_draft, replace_from_p])
@pytest.mark.parametrize("sampling", [GUIDED, TRUNCATED], ids=["guided", "truncated"])
def test_that_test_notices_a_fault(enumerable, sampling, fault, monkeypatch):
    monkeypatch.setattr(jacobi, "redraw", fault)
    assert smallest_p_value(*enumerable, sampling, 3) < 1e-9


def plain_greedy(model, layout, contexts, scale):
    """One image, one cache per context."""
    caches = [DynamicCache() for _ in contexts]
    codes = []
    for _ in range(layout.tokens):
        logits = []
        for context, cache in zip(contexts, caches, strict=True):
            new = [layout.visual_offset + codes[-1]] if codes else context
            output = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
            logits.append(output.logits[0, -1, layout.visual_offset :])
        codes.append(int((guided_logits(*logits, scale) if len(contexts) == 2 else logits[0]).argmax()))
    return codes


CAPTIONS = ["a red circle", "two blue square and a cross", "cross", "a red circle and a green square above a cross"]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("window", [1, 5, 16, 20])
def test_greedy_codes_are_those_of_the_plain_loop(peaked, scale, window):
    model, encode, layout = peaked
    prompts = [encode(text) for text in CAPTIONS]
    nulls = None if scale == 1 else [encode.null, encode.null, encode("a"), encode.null]
    seeds = [(i,) for i in range(len(prompts))]
    sampling = Sampling(temperature=0.0, guidance_scale=scale)
    codes, _ = sample_codes_jacobi(model, prompts, layout, seeds, sampling, nulls, window)
    with torch.no_grad():
        contexts = zip(prompts, nulls, strict=True) if nulls else ([prompt] for prompt in prompts)
        expected = [plain_greedy(model, layout, list(row), scale) for row in contexts]
    assert codes.tolist() == expected
    assert len({tuple(row) for row in expected}) > 1


def test_an_image_depends_on_its_seed_and_prompts_alone(peaked):
    model, encode, layout = peaked
    prompts, nulls = [encode(text) for text in CAPTIONS], [encode.null] * len(CAPTIONS)
    seeds = [(7, i) for i in range(len(CAPTIONS))]
    together, statistics = sample_codes_jacobi(model, prompts, layout, seeds, GUIDED, nulls, 6)
    steps = []
    for row in range(len(CAPTIONS)):
        one = slice(row, row + 1)
        alone, own = sample_codes_jacobi(model, prompts[one], layout, seeds[one], GUIDED, nulls[one], 6)
        assert alone.tolist() == together[one].tolist()
        steps.append(own.steps)
    assert len(set(steps)) > 1  # so some rows finished before others
    assert statistics.steps == np.mean(steps)
    other, _ = sample_codes_jacobi(model, prompts, layout, [(8, i) for i in range(4)], GUIDED, nulls, 6)
    assert other.dtype == torch.int64 and not torch.equal(other, together)


@pytest.mark.parametrize("window", [1, 4, 8])
def test_a_pass_reads_the_window_alone(peaked, window):
    model, encode, layout = peaked
    prompt, read = encode(CAPTIONS[0]), []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    _, statistics = sample_codes_jacobi(model, [prompt], layout, [(1,)], GUIDED, [encode.null], window)
    hook.remove()
    assert read[0] == len(prompt) and max(read[1:]) == window
    assert statistics.steps == len(read)
    # Every rejected draft ends its pass, and a pass ends with a rejected draft, a full window or the image.
    rejected = layout.tokens * (1 - statistics.acceptance)
    assert max(rejected, layout.tokens / window) <= statistics.steps <= layout.tokens
    assert 0 <= statistics.acceptance < 1
    assert (statistics.steps == layout.tokens) == (window == 1)
