"""The vLLM engine against the learner's own log-probs, and the invariants of sampling."""

import dataclasses

import numpy as np
import pytest
import torch

from simplear_rl.errors import UserError
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.rollout.engine import build_engine
from simplear_rl.rollout.transformers_engine import sample_codes
from simplear_rl.rollout.vllm_engine import VllmEngine
from simplear_rl.weights.snapshot import Weights, checksum

TEXTS = [
    "a red circle",
    "two blue square and a cross",
    "three cross",
    "a red circle",
    "one green square left of a circle",
]
PLAIN, GUIDED = Sampling(), Sampling(guidance_scale=3.0)
PROMPTS = [Prompt(i, text) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def engine(policy, engine_config):
    return VllmEngine(policy, engine_config)


@pytest.fixture
def weights(policy):
    """The policy's weights, to put them back."""
    tensors = {name: p.detach() for name, p in load_policy(policy)[0].named_parameters()}
    return Weights(0, tensors, checksum(tensors.items()))


def perturbed(weights: Weights, version: int = 1) -> Weights:
    generator = torch.Generator().manual_seed(version)
    tensors = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in weights.tensors.items()}
    return Weights(version, tensors, checksum(tensors.items()))


def test_log_probs_are_those_of_the_policy(engine, policy):
    model, _ = load_policy(policy)
    for sampling in PLAIN, Sampling(temperature=0.7), GUIDED, Sampling(temperature=0.8, guidance_scale=0.5):
        for rollout in engine.generate(Draw(PROMPTS, 4, 0, 1, sampling)):
            with torch.no_grad():
                own = rollout_log_probs(model, [rollout], read_layout(policy))
            assert np.abs(own.numpy() - rollout.log_probs).max() < 1e-4


def test_a_sample_depends_on_its_seed_alone(engine, policy):
    together = {r.prompt.index: r for r in engine.generate(Draw(PROMPTS, 4, 0, 3, PLAIN))}
    for prompt in reversed(PROMPTS):
        (alone,) = engine.generate(Draw([prompt], 4, 0, 3, PLAIN))
        assert np.array_equal(alone.codes, together[prompt.index].codes)
    (fewer,) = engine.generate(Draw(PROMPTS[:1], 2, 0, 3, PLAIN))
    assert np.array_equal(fewer.codes, together[0].codes[:2])


def test_equal_prompts_get_samples_of_their_own(engine):
    groups = list(engine.generate(Draw(PROMPTS, 4, 0, 4, PLAIN)))
    assert groups[0].prompt.text == groups[3].prompt.text
    assert not np.array_equal(groups[0].codes, groups[3].codes)
    assert len(np.unique(groups[0].codes, axis=0)) == 4


def test_the_transformers_engine_draws_the_same_images(engine, policy):
    model, encode = load_policy(policy)
    groups = list(engine.generate(Draw(PROMPTS, 2, 5, 6, PLAIN)))
    prompts = [encode(p.text) for p in PROMPTS for _ in range(2)]
    seeds = [(5, 6, p.index, k) for p in PROMPTS for k in range(2)]
    with torch.no_grad():
        codes = sample_codes(model, prompts, read_layout(policy), seeds)
    assert np.array_equal(codes.numpy(), np.concatenate([g.codes for g in groups]))


def test_greedy_takes_the_likeliest_code(engine, policy):
    model, _ = load_policy(policy)
    (rollout,) = engine.generate(Draw(PROMPTS[:1], 1, 0, 0, Sampling(temperature=0)))
    ids = rollout.prompt_ids
    with torch.no_grad():
        for code in rollout.codes[0]:
            layout = read_layout(policy)
            logits = model(torch.tensor([ids])).logits[0, -1, layout.visual_offset :]
            assert logits.argmax() == code
            ids = [*ids, layout.visual_offset + int(code)]


def test_broadcast_replaces_every_weight_and_is_verified(engine, weights):
    before = next(engine.generate(Draw(PROMPTS[:1], 4, 0, 1, PLAIN)))
    new = perturbed(weights)
    engine.load_weights(new)
    assert engine.checksum() == new.checksum != weights.checksum
    after = next(engine.generate(Draw(PROMPTS[:1], 4, 0, 1, PLAIN)))
    assert after.weight_version == 1
    assert not np.array_equal(after.codes, before.codes)
    engine.load_weights(weights)
    assert np.array_equal(next(engine.generate(Draw(PROMPTS[:1], 4, 0, 1, PLAIN))).codes, before.codes)


def test_no_stale_prefix_after_a_broadcast(engine, policy, weights):
    # Longer than a block of the cache (16 tokens on GPUs, 128 on CPUs), so that its keys and values are shared.
    prompt = Prompt(0, "a red circle and " * 34 + "a cross")
    list(engine.generate(Draw([prompt], 4, 0, 1, PLAIN)))
    new = perturbed(weights)
    engine.load_weights(new)
    (found,) = engine.generate(Draw([prompt], 4, 0, 1, PLAIN))
    engine.load_weights(weights)
    model, encode = load_policy(policy)
    model.load_state_dict(new.tensors, strict=False)
    with torch.no_grad():
        expected = sample_codes(model, [encode(prompt.text)] * 4, read_layout(policy), [(0, 1, 0, k) for k in range(4)])
    assert np.array_equal(found.codes, expected.numpy())


def test_what_was_drawn_before_is_not_computed_with(engine, monkeypatch):
    """Keys and values of a cached prefix can round differently, so that training would depend on an evaluation."""
    beginning = "a red circle and " * 34  # longer than a block of the cache
    list(engine.generate(Draw([Prompt(0, beginning + "a square")], 1, 0, 0, PLAIN)))
    cached, step = [], engine.llm.llm_engine.step

    def recorded():
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(engine.llm.llm_engine, "step", recorded)
    list(engine.generate(Draw([Prompt(0, beginning + "a cross")], 1, 0, 1, PLAIN)))
    assert cached == [0]


def test_damaged_broadcast_is_refused(engine, weights):
    name = "model.layers.1.mlp.down_proj.weight"
    damaged = dict(weights.tensors)
    damaged[name] = damaged[name].clone()
    damaged[name][0, 0] += 1e-3
    with pytest.raises(RuntimeError, match="version 9: model.layers.1.mlp.down_proj.weight differs"):
        engine.load_weights(dataclasses.replace(weights, version=9, tensors=damaged))
    engine.load_weights(weights)


def test_weights_do_not_change_under_running_images(engine, weights):
    running = engine.generate(Draw(PROMPTS, 4, 0, 1, PLAIN))  # 20 images, 8 at a time
    next(running)
    with pytest.raises(RuntimeError, match="being drawn"):
        engine.load_weights(weights)
    list(running)


@pytest.mark.parametrize(("text", "message"), [("  ", "empty caption"), ("a red circle " * 50, "155 tokens")])
def test_bad_prompts_are_refused_before_anything_is_drawn(engine, text, message):
    with pytest.raises(UserError, match=message):
        list(engine.generate(Draw([*PROMPTS, Prompt(5, text)], 2, 0, 0, PLAIN)))
    assert len(list(engine.generate(Draw(PROMPTS[:2], 2, 0, 0, PLAIN)))) == 2


def test_kernels_for_gpus_are_refused_on_a_cpu(policy, engine_config):
    with pytest.raises(UserError, match="batch_invariant: vLLM has such kernels for GPUs alone"):
        build_engine(policy, engine_config.model_copy(update={"batch_invariant": True}))
