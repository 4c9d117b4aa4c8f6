"""Decoding step by step with a fixed cache: what Transformers computes, and the same in Triton's interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.rollout.decode_operators import Operators, Place
from simplear_rl.rollout.decode_step import DecodeStep
from simplear_rl.rollout.transformers_engine import TransformersEngine, sample_codes
from simplear_rl.weights.sharing import shared
from simplear_rl.weights.snapshot import Weights, checksum
from tests.conftest import make_policy

PROMPTS = [Prompt(i, "a red circle and a blue square " * (1 + i % 3)) for i in range(5)]


@pytest.fixture
def engine(policy):
    return TransformersEngine(policy, EngineConfig(type="transformers", max_concurrent=8))


@torch.no_grad()
def test_logits_are_those_of_transformers_and_follow_new_weights(policy):
    model, encode = load_policy(policy)
    step = DecodeStep(model, read_layout(policy), 40)
    contexts = [encode(text) for text in ("a red circle", "a", "two cross left a blue square")]
    codes_KT = torch.randint(0, 100, (3, 6), generator=torch.Generator().manual_seed(0)) + step.layout.visual_offset
    for _ in range(2):
        model.model.layers[1].self_attn.k_proj.bias.add_(0.3)  # not a fused copy of old weights
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
        step.reserve(4)
        logits = [step.begin(contexts)]
        for t in range(6):
            step.ids[:3] = codes_KT[:, t]
            logits.append(step(3))
        for row, ids in enumerate(contexts):
            whole = model(torch.tensor([ids + codes_KT[row].tolist()])).logits[
                0, len(ids) - 1 :, step.layout.visual_offset :
            ]
            torch.testing.assert_close(torch.stack([step_KC[row] for step_KC in logits]), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type linear, not",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types full_attention, sliding_attention",
        ),
        ({"hidden_act": "gelu"}, "hidden_act gelu, not silu"),
    ],
)
def test_what_the_step_does_not_compute_is_refused(policy, values, message):
    model = load_policy(policy)[0]
    for key, value in values.items():
        setattr(model.config, key, value)
    with pytest.raises(UserError, match=message):
        DecodeStep(model, read_layout(policy), 40)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(guidance_scale=3.0), Sampling(temperature=0), Sampling(0.7, 20, 0.9, 2.0)],
    ids=["plain", "guided", "greedy", "filtered"],
)
def test_codes_are_those_of_the_plain_loop_and_log_probs_those_of_the_learner(engine, policy, sampling):
    groups = list(engine.generate(Draw(PROMPTS, 3, 5, 2, sampling)))
    model, encode = load_policy(policy)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        seeds = [(5, 2, prompt.index, k) for k in range(3)]
        guided = [encode.null] * 3 if sampling.guidance_scale != 1 else None
        with torch.no_grad():
            expected = sample_codes(model, [encode(prompt.text)] * 3, engine.layout, seeds, sampling, guided)
            log_probs_GT = rollout_log_probs(model, [group], engine.layout)
        assert np.array_equal(group.codes, expected.numpy())
        np.testing.assert_allclose(group.log_probs, log_probs_GT, atol=2e-5)


def test_every_transport_loads_verifies_and_names_what_differs(engine, tmp_path):
    before = [group.codes for group in engine.generate(Draw(PROMPTS, 2, 0, 0, Sampling()))]
    other = load_policy(make_policy(tmp_path / "other", seed=1))[0]
    tensors = {name: p.detach() for name, p in other.named_parameters()}
    sums = checksum(tensors.items())
    engine.load_weights(Weights(3, tensors, sums))
    after = list(engine.generate(Draw(PROMPTS, 2, 0, 0, Sampling())))
    assert engine.checksum() == sums and {group.weight_version for group in after} == {3}
    assert not any(np.array_equal(old, new.codes) for old, new in zip(before, after, strict=True))

    tensors["model.norm.weight"].add_(1)
    copies, handles = shared(tensors)
    engine.map_weights(handles)
    with pytest.raises(RuntimeError, match="weights of version 4: model.norm.weight differs"):
        engine.accept_weights(4, sums)
    engine.accept_weights(4, checksum(copies.items()))
    assert engine.version == 4


def test_triton_kernels_compute_what_the_operators_do():
    """In an interpreter that has to be chosen before Triton is imported. One GPU ran them: docs/timings.md."""
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "tests.rollout.test_decoding"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("dtype", "gpu"), [(torch.bfloat16, 90), (torch.float32, 90), (torch.bfloat16, 80)])
def test_triton_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch, dtype, gpu):
    triton = pytest.importorskip("triton")
    from simplear_rl.rollout.decode_few import FewKernels
    from simplear_rl.rollout.decode_kernels import Kernels

    names = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}
    compiled = []

    def run(kernel, *args, grid, warmup, **rest):
        kinds = {int: "i32", float: "fp32"}
        signature = {n: kinds.get(type(a)) or names[a.dtype] for n, a in zip(kernel.arg_names, args, strict=False)}
        constants = {name: rest.pop(name) for name in kernel.arg_names if name in rest}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if "*" in kind}
        source = triton.compiler.ASTSource(
            kernel, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants, attrs=aligned
        )
        target = triton.backends.compiler.GPUTarget("cuda", gpu, 32)
        compiled.append(triton.compile(source, target=target, options=rest).metadata.name)

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)
    monkeypatch.setattr(FewKernels, "ahead", gpu >= 90)
    # The sizes of SimpleAR-0.5B.
    x, norm, bias = (torch.zeros(shape, dtype=dtype) for shape in ((2, 896), (896,), (1152,)))
    qkv, out, up, down = (
        torch.zeros(n, m, dtype=dtype) for n, m in ((1152, 896), (896, 896), (9728, 896), (896, 4864))
    )
    cache, angles, at = (
        torch.zeros(2, 2, 64, 64, dtype=dtype),
        torch.zeros(2, 64, 32),
        torch.zeros(2, dtype=torch.int32),
    )
    for operators in Kernels(), FewKernels():
        first = operators.norm_linear(x, None, norm, 1e-6, qkv, bias)[1]
        operators.linear(operators.attend(first, Place(angles, at[:1], at), cache, cache), out)
        operators.linear(operators.norm_gated(x, x, norm, 1e-6, up)[1], down)
        operators.norm_logits(x, x, norm, 1e-6, out)
    assert len(compiled) == 13 and set(compiled) == {"_add_norm", "_attend", "_combine", "_gate", "_product"}


def compare_kernels() -> None:
    """Three rows whose first columns differ, in a cache whose other columns hold what must not be seen."""
    from simplear_rl.rollout import decode_kernels
    from simplear_rl.rollout.decode_few import FewKernels
    from simplear_rl.rollout.decode_kernels import Kernels

    decode_kernels.PROGRAMS = 24  # 4 splits of 6 heads
    torch.manual_seed(0)
    contexts, groups, queries, size, columns = 3, 2, 3, 16, 80
    x, delta, norm = torch.randn(3, 24), torch.randn(3, 24), torch.randn(24)
    features = (groups * queries + 2 * groups) * size
    weight, head, other = (torch.randn(n, m) / m**0.5 for n, m in ((features, 24), (53, 24), (24, 96)))
    bias = torch.randn(features)
    keys, values = torch.randn(2, contexts, groups, columns, size)
    angles = torch.randn(2, columns, size // 2)
    first = torch.tensor([0, 3, 70], dtype=torch.int32)
    results = []
    for operators in Operators(), Kernels(), FewKernels():
        k, v = keys.clone(), values.clone()
        found = [*operators.norm_linear(x.clone(), None, norm, 1e-6, weight, bias)]
        own, qkv = operators.norm_linear(x.clone(), delta, norm, 1e-6, weight, None)
        for column in 70, 79:
            at = torch.tensor([column], dtype=torch.int32)
            found.append(operators.attend(qkv + column, Place(angles, at, first), k, v))
        found += [own, qkv, k, v, *operators.norm_gated(x.clone(), delta, norm, 1e-6, weight)]
        found += [operators.linear(found[2], other), operators.norm_logits(x.clone(), delta, norm, 1e-6, head)]
        results.append(found)
    for kernels in results[1:]:
        for plain, kernel in zip(results[0], kernels, strict=True):
            torch.testing.assert_close(kernel, plain, atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    compare_kernels()
