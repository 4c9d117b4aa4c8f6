"""Guided decoding: every engine against a plain loop with two caches, and the pairing of contexts under stress."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.model import load_policy, random_policy, word_tokenizer
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling, draw_codes, sampling_log_probs, uniform_stream
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.rollout import vllm_engine as engine_module
from simplear_rl.rollout.jacobi import sample_codes_jacobi
from simplear_rl.rollout.pairing import AsyncPairScheduler, PairScheduler
from simplear_rl.rollout.transformers_engine import TransformersEngine, sample_codes
from simplear_rl.rollout.vllm_engine import VllmEngine

WORDS = ["A", "photo", "of", "a", "red", "green", "blue", "circle", "square", "cross"]
GUIDED = Sampling(guidance_scale=3.0)


def make_policy(folder, grid=(4, 4), codes=50):
    """A random policy with peaked distributions that depend on the prompt."""
    geometry = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
    }
    tokenizer = word_tokenizer(WORDS)
    random_policy(
        folder, tokenizer, codebook_size=codes, grid=grid, prompt_prefix="A photo of ", geometry=geometry, seed=1
    )
    return folder


def prompts_of_many_lengths(number):
    random = np.random.default_rng(0)
    lengths = np.linspace(1, 140, number).astype(int)
    return [Prompt(i, " ".join(random.choice(WORDS, length))) for i, length in enumerate(lengths)]


@torch.no_grad()
def two_cache_loop(model, conditional, unconditional, layout, seed, sampling):
    """One image, the plain way: each context has its own cache and no padding."""
    uniforms = torch.from_numpy(uniform_stream(seed, layout.tokens))
    caches, ids = [DynamicCache(), DynamicCache()], [conditional, unconditional]
    codes = []
    for t in range(layout.tokens):
        c, u = (
            model(torch.tensor([i]), past_key_values=cache).logits[:, -1, layout.visual_offset :]
            for i, cache in zip(ids, caches, strict=True)
        )
        log_probs = sampling_log_probs(u + sampling.guidance_scale * (c - u), sampling)
        drawn = draw_codes(log_probs, uniforms[t : t + 1])[0] if sampling.temperature else log_probs.argmax(-1)
        codes.append(int(drawn))
        ids = [[layout.visual_offset + codes[-1]]] * 2
    return codes


def loop_images(policy, prompts, seed, sampling, samples=1, negative=None):
    model, encode = load_policy(policy)
    other = encode(negative) if negative else encode.null
    return {
        (p.index, k): two_cache_loop(model, encode(p.text), other, read_layout(policy), (*seed, p.index, k), sampling)
        for p in prompts
        for k in range(samples)
    }


def engine_images(engine, prompts, seed, sampling, samples=1, negative=None):
    groups = engine.generate(Draw(prompts, samples, *seed, sampling, negative))
    return {(g.prompt.index, k): codes.tolist() for g in groups for k, codes in enumerate(g.codes)}


def transformers_images(policy, prompts, seed, sampling, negative=None):
    model, encode = load_policy(policy)
    other = encode(negative) if negative else encode.null
    with torch.no_grad():
        codes = sample_codes(
            model,
            [encode(p.text) for p in prompts],
            read_layout(policy),
            [(*seed, p.index, 0) for p in prompts],
            sampling,
            [other] * len(prompts),
        )
    return {(p.index, 0): row for p, row in zip(prompts, codes.tolist(), strict=True)}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return make_policy(tmp_path_factory.mktemp("policy"), grid=(8, 8))


@pytest.fixture(scope="module")
def engine(policy):
    return VllmEngine(policy, EngineConfig(max_concurrent=16, kv_cache_gib=0.1, max_prompt_tokens=150))


@pytest.mark.parametrize(
    ("sampling", "negative"),
    [
        (Sampling(temperature=0, guidance_scale=3.0), None),
        (GUIDED, "a blue square"),
        (Sampling(temperature=0.8, guidance_scale=1.5, top_k=20, top_p=0.9), None),
        (Sampling(guidance_scale=0.0), "a blue square"),
    ],
    ids=["greedy", "sampled", "filtered", "unconditional"],
)
def test_every_engine_draws_what_two_caches_draw(engine, policy, sampling, negative):
    prompts = prompts_of_many_lengths(16)
    expected = loop_images(policy, prompts, (3, 4), sampling, negative=negative)
    assert engine_images(engine, prompts, (3, 4), sampling, negative=negative) == expected
    assert transformers_images(policy, prompts, (3, 4), sampling, negative=negative) == expected


@pytest.mark.parametrize("grid", [(8, 8), pytest.param((16, 16), marks=pytest.mark.slow)])
def test_greedy_on_many_prompts_and_long_images(tmp_path, grid):
    policy = make_policy(tmp_path / "policy", grid)
    prompts, sampling = prompts_of_many_lengths(32), Sampling(temperature=0, guidance_scale=2.0)
    expected = loop_images(policy, prompts, (0, 0), sampling)
    engine = VllmEngine(policy, EngineConfig(max_concurrent=32, kv_cache_gib=0.2, max_prompt_tokens=150))
    assert engine_images(engine, prompts, (0, 0), sampling) == expected
    assert transformers_images(policy, prompts, (0, 0), sampling) == expected
    stepwise = TransformersEngine(policy, EngineConfig(type="transformers", max_concurrent=32, max_prompt_tokens=150))
    assert engine_images(stepwise, prompts, (0, 0), sampling) == expected
    model, encode = load_policy(policy)
    contexts, seeds = [encode(p.text) for p in prompts], [(0, 0, p.index, 0) for p in prompts]
    codes, _ = sample_codes_jacobi(model, contexts, read_layout(policy), seeds, sampling, [encode.null] * len(prompts))
    assert codes.tolist() == list(expected.values())


def exact_joint(policy, prompt, scale):
    """The guided distribution of the first two codes, [codes, codes]."""
    model, encode = load_policy(policy)
    layout = read_layout(policy)

    def log_probs(codes):
        rows = []
        for ids in encode(prompt), encode.null:
            with torch.no_grad():
                full = model(torch.tensor([[*ids, *(layout.visual_offset + c for c in codes)]])).logits
            rows.append(full[0, -1, layout.visual_offset :])
        return torch.log_softmax(rows[1] + scale * (rows[0] - rows[1]), -1)

    first = log_probs([])
    return torch.stack([first[a] + log_probs([a]) for a in range(layout.codebook_size)]).exp().double().numpy()


def test_first_two_codes_follow_the_exact_guided_distribution(tmp_path):
    policy, number = make_policy(tmp_path / "policy", grid=(1, 2), codes=5), 6000
    exact = exact_joint(policy, "a red circle", 2.0).ravel()
    engine = VllmEngine(policy, EngineConfig(max_concurrent=256, kv_cache_gib=0.1, max_prompt_tokens=20))
    (group,) = engine.generate(Draw([Prompt(0, "a red circle")], number, 0, 0, Sampling(guidance_scale=2.0)))
    model, encode = load_policy(policy)
    with torch.no_grad():
        other = sample_codes(
            model,
            [encode("a red circle")] * number,
            read_layout(policy),
            [(1, 0, 0, k) for k in range(number)],
            Sampling(guidance_scale=2.0),
            [encode.null] * number,
        ).numpy()
    for codes in group.codes.astype(int), other:
        counts = np.bincount(codes[:, 0] * 5 + codes[:, 1], minlength=25)
        assert chisquare(counts, exact / exact.sum() * number).pvalue > 0.001
        unguided = exact_joint(policy, "a red circle", 1.0).ravel()
        assert chisquare(counts, unguided / unguided.sum() * number).pvalue < 1e-6, "the test could not fail"


@pytest.fixture(scope="module", params=[PairScheduler, AsyncPairScheduler])
def small_engine(policy, request):
    """Few slots, a small budget of tokens a step and a small cache: everything has to wait for everything.

    The scheduler of GPUs runs here without vLLM's asynchronous steps, which a CPU does not have.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engine_module.ON_CPUS, "scheduler_cls", request.param)
        small = {"max_num_batched_tokens": 256, "num_gpu_blocks_override": 48, "block_size": 32}
        patch.setattr(engine_module, "LLM", partial(engine_module.LLM, **small))
        return VllmEngine(policy, EngineConfig(max_concurrent=7, kv_cache_gib=0.1, max_prompt_tokens=150))


def add(engine, prompt, k, half):
    pair = f"{prompt.index}/{k}"
    ids = engine.encode(prompt.text) if half == "conditional" else engine.encode.null
    draw = {"seed": [7, 0, prompt.index, k], "sampling": GUIDED, "pair": pair, "unconditional": half != "conditional"}
    engine._add(f"{pair}/{half}", ids, draw, {"logprobs": 0})


@pytest.mark.parametrize("order", range(2))
def test_no_stream_differs_under_stress(small_engine, policy, order):
    """Halves arrive apart and in any order, between steps; some images are given up while they run."""
    random = np.random.default_rng(order)
    prompts = prompts_of_many_lengths(12)
    halves = [(p, k, half) for p in prompts for k in range(2) for half in ("conditional", "unconditional")]
    arrivals = [halves[i] for i in random.permutation(len(halves))]
    given_up = {(int(i), 1) for i in random.choice(12, 4, replace=False)}
    llm, images = small_engine.llm.llm_engine, {}
    for _ in range(20_000):
        for p, k, half in [arrivals.pop() for _ in range(min(len(arrivals), random.integers(3)))]:
            add(small_engine, p, k, half)
            if (p.index, k) in given_up and half == "unconditional" and random.random() < 0.5:
                llm.abort_request([f"{p.index}/{k}/{half}"])
        for output in llm.step():
            index, k, half = output.request_id.split("/")
            if output.finished and half == "conditional" and output.outputs[0].finish_reason == "length":
                tokens = np.array(output.outputs[0].token_ids) - small_engine.layout.visual_offset
                images[int(index), int(k)] = tokens.tolist()
        if not arrivals and random.random() < 0.02:
            llm.abort_request([f"{i}/{k}/{half}" for i, k in given_up for half in ("conditional", "unconditional")])
        if not arrivals and not llm.has_unfinished_requests():
            break
    else:
        raise AssertionError("hangs")
    expected = loop_images(policy, prompts, (7, 0), GUIDED, samples=2)
    assert {key for key in expected if key not in given_up} <= images.keys()
    assert all(images[key] == expected[key] for key in images)


def test_unguided_images_pass_the_same_gate(small_engine, policy):
    prompts = prompts_of_many_lengths(12)
    model, encode = load_policy(policy)
    with torch.no_grad():
        codes = sample_codes(
            model, [encode(p.text) for p in prompts], read_layout(policy), [(1, 1, p.index, 0) for p in prompts]
        )
    found = engine_images(small_engine, prompts, (1, 1), Sampling())
    assert found == {(p.index, 0): row for p, row in zip(prompts, codes.tolist(), strict=True)}


def test_caller_that_takes_one_group_leaves_nothing_behind(small_engine):
    prompts = prompts_of_many_lengths(6)
    groups = small_engine.generate(Draw(prompts, 2, 0, 0, GUIDED))
    next(groups)
    groups.close()
    assert not small_engine.llm.llm_engine.has_unfinished_requests()
    assert len(list(small_engine.generate(Draw(prompts, 2, 0, 0, GUIDED)))) == 6


def test_image_that_can_never_fit_is_refused(policy):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "LLM", partial(engine_module.LLM, num_gpu_blocks_override=9, block_size=32))
        tight = VllmEngine(policy, EngineConfig(max_concurrent=8, kv_cache_gib=0.1, max_prompt_tokens=150))
    long, short = prompts_of_many_lengths(2)[1:], [Prompt(0, "a circle")]
    assert len(list(tight.generate(Draw(short, 1, 0, 0, GUIDED)))) == 1
    with pytest.raises(UserError, match=r"takes 10 blocks .* the engine has 8: raise kv_cache_gib by a factor"):
        list(tight.generate(Draw(long, 1, 0, 0, GUIDED)))
