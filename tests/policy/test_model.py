import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from simplear_rl.errors import UserError
from simplear_rl.policy import log_probs
from simplear_rl.policy.log_probs import rollout_log_probs, rollout_log_probs_and_entropy
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.reference import ReferencePolicy
from simplear_rl.policy.rollouts import Prompt, Rollout, passes
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_layout
from tests.conftest import make_policy


def two_cross(encode, codes: torch.Tensor, scale: float) -> Rollout:
    """Images with these codes [G, T], as if they had been drawn at temperature 0.7."""
    return Rollout(
        prompt=Prompt(0, "two cross"),
        prompt_ids=encode("two cross"),
        unconditional_ids=encode.null if scale != 1 else None,
        codes=codes.numpy().astype(np.uint16),
        log_probs=np.zeros(codes.shape, np.float32),
        sampling=Sampling(temperature=0.7, guidance_scale=scale),
        weight_version=0,
        seed=0,
        step=1,
    )


def test_folder_is_loaded_by_plain_transformers(policy):
    model, encode = load_policy(policy)
    plain = AutoModelForCausalLM.from_pretrained(policy)
    ids = torch.tensor([encode("a red circle")])
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def full_logits(model, prompt, codes, layout):
    ids = torch.cat([torch.tensor(prompt).expand(len(codes), -1), codes + layout.visual_offset], dim=1)
    return model(ids).logits[:, len(prompt) - 1 : -1, layout.visual_offset :]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_log_probs_are_those_of_the_full_logits_restricted_to_visual_ids(policy, scale):
    model, encode = load_policy(policy)
    layout = read_layout(policy)
    codes = torch.randint(0, 100, (3, 16), generator=torch.Generator().manual_seed(0))
    conditional = full_logits(model, encode("two cross"), codes, layout)
    unconditional = full_logits(model, encode.null, codes, layout)
    logits = (unconditional + scale * (conditional - unconditional)) / 0.7
    expected = torch.log_softmax(logits, -1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    rollout = two_cross(encode, codes, scale)
    torch.testing.assert_close(rollout_log_probs(model, [rollout], layout), expected)


def test_a_reference_has_the_same_log_probs_a_part_of_a_group_at_a_time(policy):
    encode = load_policy(policy)[1]
    codes = np.random.default_rng(0).integers(0, 100, (5, 16)).astype(np.uint16)
    rollout = Rollout(
        Prompt(0, "two cross"), encode("two cross"), None, codes, np.zeros((5, 16), np.float32), Sampling(), 0, 0, 1
    )
    whole = ReferencePolicy(policy, "float32").log_probs([rollout])[0]
    sizes = []
    reference = ReferencePolicy(policy, "float32", micro_batch=2)
    reference.model.model.register_forward_pre_hook(
        lambda _, args, values: sizes.append(len(values["input_ids"])), with_kwargs=True
    )
    np.testing.assert_allclose(reference.log_probs([rollout])[0], whole, atol=1e-5)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("guided", [False, True])
def test_groups_of_unequal_prompts_have_the_same_log_probs_together(policy, guided):
    encode = load_policy(policy)[1]
    rollouts = []
    for text in "two cross", "a red circle and a blue square", "a cross":
        codes = np.random.default_rng(len(text)).integers(0, 100, (2, 16)).astype(np.uint16)
        null, sampling = (encode.null, Sampling(guidance_scale=3.0)) if guided else (None, Sampling())
        log_probs = np.zeros((2, 16), np.float32)
        rollouts.append(Rollout(Prompt(0, text), encode(text), null, codes, log_probs, sampling, 0, 0, 1))
    together = ReferencePolicy(policy, "float32", micro_batch=4)
    sizes = []
    together.model.model.register_forward_pre_hook(
        lambda _, args, values: sizes.append(len(values["input_ids"])), with_kwargs=True
    )
    alone = ReferencePolicy(policy, "float32").log_probs(rollouts)
    for found, expected in zip(together.log_probs(rollouts), alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sizes == ([4, 4, 2, 2] if guided else [4, 2])


@pytest.mark.parametrize(
    ("groups", "micro_batch", "expected"),
    [
        (2, None, [[(0, 0, 4)], [(1, 0, 4)]]),
        (2, 4, [[(0, 0, 4)], [(1, 0, 4)]]),
        (2, 2, [[(0, 0, 2)], [(0, 2, 4)], [(1, 0, 2)], [(1, 2, 4)]]),
        (3, 8, [[(0, 0, 4), (1, 0, 4)], [(2, 0, 4)]]),
    ],
)
def test_passes_have_parts_of_a_group_or_whole_groups(groups, micro_batch, expected):
    found = passes(groups, 4, micro_batch)
    assert [[(i, rows.start, rows.stop) for i, rows in members] for members in found] == expected


def test_guided_gradient_flows_through_both_contexts_or_one(policy):
    model, encode = load_policy(policy)
    layout, scale = read_layout(policy), 2.0
    codes = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    rollout = Rollout(
        prompt=Prompt(0, "two cross"),
        prompt_ids=encode("two cross"),
        unconditional_ids=encode.null,
        codes=codes.numpy().astype(np.uint16),
        log_probs=np.zeros((2, 16), np.float32),
        sampling=Sampling(guidance_scale=scale),
        weight_version=0,
        seed=0,
        step=1,
    )
    weight = model.model.layers[0].mlp.down_proj.weight
    for both in True, False:
        conditional = full_logits(model, encode("two cross"), codes, layout)
        unconditional = full_logits(model, encode.null, codes, layout)
        unconditional = unconditional if both else unconditional.detach()
        logits = unconditional + scale * (conditional - unconditional)
        plain = torch.log_softmax(logits, -1).gather(-1, codes.unsqueeze(-1)).sum()
        (expected,) = torch.autograd.grad(plain, weight)
        (found,) = torch.autograd.grad(rollout_log_probs(model, [rollout], layout, both).sum(), weight)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def damaged(policy, folder, name, content):
    shutil.copytree(policy, folder)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "the weights cannot be loaded"),
        ("config.json", "config.json: not a readable model configuration"),
        ("tokenizer.json", "tokenizer.json: not a readable tokenizer"),
    ],
)
def test_damaged_files_are_named(policy, tmp_path, name, message):
    with pytest.raises(UserError, match=message) as error:
        load_policy(damaged(policy, tmp_path / "p", name, b"{ not what it should be"))
    assert str(tmp_path / "p") in str(error.value)


@pytest.mark.parametrize("both", [True, False])
def test_chunks_change_neither_values_nor_gradients(policy, monkeypatch, both):
    model, encode = load_policy(policy)
    layout = read_layout(policy)
    rollout = Rollout(
        prompt=Prompt(0, "two cross"),
        prompt_ids=encode("two cross"),
        unconditional_ids=encode.null,
        codes=torch.randint(0, 100, (3, 16), generator=torch.Generator().manual_seed(0)).numpy().astype(np.uint16),
        log_probs=np.zeros((3, 16), np.float32),
        sampling=Sampling(guidance_scale=3.0),
        weight_version=0,
        seed=0,
        step=1,
    )
    found = []
    for logits_per_chunk in 2**26, 700:  # 7 rows at a time
        monkeypatch.setattr(log_probs, "LOGITS_PER_CHUNK", logits_per_chunk)
        model.zero_grad()
        values = rollout_log_probs(model, [rollout], layout, both)
        values.sum().backward()
        found.append([values.detach(), *(p.grad for p in model.parameters())])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("logits_per_chunk", [2**26, 700])
def test_entropy_is_that_of_the_tempered_and_guided_distribution(policy, monkeypatch, scale, logits_per_chunk):
    model, encode = load_policy(policy)
    layout, weight = read_layout(policy), model.model.layers[0].mlp.down_proj.weight
    codes = torch.randint(0, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    conditional = full_logits(model, encode("two cross"), codes, layout)
    unconditional = full_logits(model, encode.null, codes, layout)
    logits = (unconditional + scale * (conditional - unconditional)) / 0.7
    expected = torch.distributions.Categorical(logits=logits).entropy()
    (gradient,) = torch.autograd.grad(expected.sum(), weight)
    monkeypatch.setattr(log_probs, "LOGITS_PER_CHUNK", logits_per_chunk)
    rollout = two_cross(encode, codes, scale)
    _, found = rollout_log_probs_and_entropy(model, [rollout], layout, entropy_gradient=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), weight)[0], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("logits_per_chunk", [2**26, 700])
def test_an_entropy_without_gradient_changes_no_bit_and_is_computed_once(policy, monkeypatch, logits_per_chunk):
    model, encode = load_policy(policy)
    layout, computed = read_layout(policy), []
    monkeypatch.setattr(log_probs, "LOGITS_PER_CHUNK", logits_per_chunk)
    entropy = log_probs.entropy
    monkeypatch.setattr(log_probs, "entropy", lambda values: computed.append(len(values)) or entropy(values))
    codes = np.random.default_rng(0).integers(0, 100, (3, 16)).astype(np.uint16)
    rollout = Rollout(
        Prompt(0, "two cross"), encode("two cross"), None, codes, np.zeros((3, 16), np.float32), Sampling(), 0, 0, 1
    )
    outcomes = []
    for function in rollout_log_probs, lambda *args: rollout_log_probs_and_entropy(*args)[0]:
        model.zero_grad()
        values = function(model, [rollout], layout)
        values.sum().backward()
        outcomes.append([values.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*outcomes, strict=True))
    assert sum(computed) == 3 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "missing weights: model.norm.weight"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "unexpected weights: other"),
    ],
)
def test_weights_of_another_model_are_refused(policy, tmp_path, change, message):
    folder = Path(shutil.copytree(policy, tmp_path / "p"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_policy(folder)


def test_a_reference_that_moves_is_the_other_policy_in_the_same_memory(policy, tmp_path):
    other = make_policy(tmp_path / "other", seed=7)
    reference = ReferencePolicy(policy, "float32")
    address = reference.model.lm_head.weight.data_ptr()
    reference.load(other)
    assert reference.model.lm_head.weight.data_ptr() == address
    expected = load_policy(other)[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in reference.model.state_dict().items())
