import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import SPECIAL_TOKENS, ImageLayout, PromptEncoder, read_encoder, read_layout

QWEN = Path(__file__).parents[3] / "shared" / "data" / "qwen2.5_tokenizer"


def test_prompt_is_prefix_and_caption_between_the_special_tokens(policy):
    encode = read_encoder(policy)
    ids = encode("a red circle")
    assert encode.tokenizer.convert_ids_to_tokens(ids) == [
        "<|t2i|>",
        "A",
        "photo",
        "of",
        "a",
        "red",
        "circle",
        "<|soi|>",
    ]
    assert encode.null == [ids[0], ids[-1]]


def test_special_tokens_in_a_caption_do_not_end_the_prompt_early(policy):
    # SimpleAR's own code strips the characters of "<|t2i|>" from captions: "two dogs" became "two dog".
    encode = read_encoder(policy)
    assert encode("two")[-2:] == [encode.tokenizer.convert_tokens_to_ids("two"), encode.end]


@pytest.mark.skipif(not QWEN.exists(), reason=f"{QWEN} is missing")
def test_published_layout_of_the_real_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    assert len(tokenizer) == 151_665
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    assert tokenizer.convert_tokens_to_ids(["<|t2i|>", "<|soi|>"]) == [151_665, 151_667]
    layout = ImageLayout(len(tokenizer), 64_000, 64, 64, "A photo of ")
    assert (layout.visual_offset, layout.vocabulary_size, layout.tokens) == (151_672, 215_672, 4_096)
    PromptEncoder(tokenizer, layout, max_tokens=20)("two dogs")


CONTROL = ["<|t2i|>", "<|soi|>", "<|vtokens|>", "<|pad|>", "<|unk|>"]


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_in_a_caption_are_characters(policy, token):
    encode = read_encoder(policy)
    ids = encode.text_ids(f"a red {token} circle")
    special = set(encode.tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, "<|pad|>"]))
    assert not special & set(ids)
    assert encode.text_ids("a red circle") == [i for i in ids if i != encode.tokenizer.unk_token_id]


@pytest.mark.skipif(not QWEN.exists(), reason=f"{QWEN} is missing")
def test_the_real_tokenizer_spells_control_tokens_and_leaves_all_other_captions_alone():
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    encode = PromptEncoder(tokenizer, ImageLayout(len(tokenizer), 64_000, 64, 64, "A photo of "), max_tokens=1000)
    for token in tokenizer.get_added_vocab():
        ids = encode.text_ids(f"a cat{token} on a mat")
        assert max(ids) < 151_643 and tokenizer.decode(ids) == f"A photo of a cat{token} on a mat"
    captions = [json.loads(line)["text"] for line in (QWEN.parent / "dpg_prompts.jsonl").read_text().splitlines()]
    for caption in [*captions, "\u4e00\u53ea\u732b\u3000\u5728", "e\u0301 \U0001f468\u200d\U0001f469  two", "$^$\n"]:
        assert encode.text_ids(caption) == tokenizer("A photo of " + caption, add_special_tokens=False).input_ids


def test_truncation_and_padding_of_a_tokenizer_have_no_effect(policy, tmp_path):
    folder = changed(policy, tmp_path / "p")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert read_encoder(folder)("a red circle") == read_encoder(policy)("a red circle")


def test_a_negative_prompt_has_the_prefix_unless_it_is_left_out(policy):
    encode = read_encoder(policy)
    draw = Draw([], 1, 0, 0, Sampling(guidance_scale=2), "two cross")
    assert encode.unconditional(draw) == encode("two cross")
    without = encode.unconditional(replace(draw, negative_prefix=False))
    assert encode.tokenizer.convert_ids_to_tokens(without) == ["<|t2i|>", "two", "cross", "<|soi|>"]


def changed(policy, folder, **values):
    shutil.copytree(policy, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def test_model_that_is_too_small_for_its_codebook_is_refused(policy, tmp_path):
    with pytest.raises(UserError, match=r"config.json: visual ids end at \d+ .* but the model has 50 rows"):
        read_layout(changed(policy, tmp_path / "p", vocab_size=50))


def test_model_without_a_layout_is_refused(policy, tmp_path):
    with pytest.raises(UserError, match="no `image_layout`"):
        read_layout(changed(policy, tmp_path / "p", image_layout=None))


def test_missing_policy_and_tokenizer_are_named(policy, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no policy there \(config.json is missing\)"):
        read_layout(tmp_path / "nowhere")
    folder = changed(policy, tmp_path / "p")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json is missing"):
        read_encoder(folder)


def test_text_tokenizer_of_another_size_is_refused(policy, tmp_path):
    layout = dict(read_layout(policy).__dict__) | {"visual_offset": 20}
    with pytest.raises(UserError, match=r"has \d+ ids, but the model's visual ids start at 20"):
        read_encoder(changed(policy, tmp_path / "p", image_layout=layout))


def test_another_codebook_is_refused(policy):
    with pytest.raises(UserError, match="visual tokenizer t has 64000 codes, but the policy was built for 100"):
        read_layout(policy).check_codebook(64_000, "t")


def test_words_that_the_policy_does_not_know_are_named(policy):
    encode = read_encoder(policy)
    assert encode.unknown_words("a red dog and a cat") == ["dog", "cat"]
    assert encode.unknown_words("a red circle") == []
