import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from simplear_rl.errors import UserError
from simplear_rl.policy.log_probs import visual_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.vocabulary import read_layout


def test_folder_is_loaded_by_plain_transformers(policy):
    model, encode = load_policy(policy)
    plain = AutoModelForCausalLM.from_pretrained(policy)
    ids = torch.tensor([encode("a red circle")])
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_log_probs_are_those_of_the_full_logits_restricted_to_visual_ids(policy):
    model, encode = load_policy(policy)
    layout = read_layout(policy)
    prompt, codes = encode("two cross"), torch.randint(0, 100, (3, 16), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.tensor(prompt).expand(3, -1), codes + layout.visual_offset], dim=1)
    logits = model(ids).logits[:, len(prompt) - 1 : -1, layout.visual_offset :] / 0.7
    expected = torch.log_softmax(logits, -1).gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(visual_log_probs(model, prompt, codes, layout, 0.7), expected)


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
