import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from simplear_rl.errors import UserError
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
