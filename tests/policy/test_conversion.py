"""Policies from language models, published checkpoints and other policies; what is written is read by all engines."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from simplear_rl.create_policy import create_policy, parser
from simplear_rl.errors import UserError
from simplear_rl.policy.conversion import convert
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy, save_policy
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import SPECIAL_TOKENS, ImageLayout, read_encoder, read_layout, read_tokenizer
from simplear_rl.tokenizers.cosmos import OFFICIAL, TokenizerGeometry

QWEN = Path(__file__).parents[3] / "shared" / "data" / "qwen2.5_tokenizer"
WORDS = ["<|unk|>", "A", "photo", "of", "two", "red", "dogs"]
GEOMETRY = TokenizerGeometry([4, 5, 5], 8)  # 100 codes
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1100,
    "rope_theta": 1e6,
}
# Qwen2.5-0.5B
HALF_BILLION = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
}
ADVICE = {"repetition_penalty": 1.1, "do_sample": True, "top_k": 20, "eos_token_id": [1, 2]}


def write_language_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int, geometry: dict, dtype: torch.dtype = torch.float32
) -> Path:
    """A random Qwen2 language model as it is published: padded embedding, EOS ids, generation settings."""
    torch.manual_seed(0)
    config = Qwen2Config(**geometry, vocab_size=rows, tie_word_embeddings=True, eos_token_id=2, dtype=dtype)
    model = Qwen2ForCausalLM(config).to(dtype)
    model.get_input_embeddings().weight.data[len(tokenizer) :] = 7.0  # would show in a mean
    model.generation_config = GenerationConfig(**ADVICE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> Path:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|unk|>", pad_token="<|unk|>")
    return write_language_model(tmp_path_factory.mktemp("lm"), tokenizer, 16, SMALL)


@pytest.fixture(scope="module")
def policy(language_model, tmp_path_factory) -> Path:
    """Images of 4 x 4 codes."""
    output = tmp_path_factory.mktemp("policy") / "p"
    convert(language_model, output, geometry=GEOMETRY, resolution=32, prompt_prefix="A photo of ")
    return output


@pytest.fixture
def published(policy, tmp_path) -> Path:
    """The policy as SimpleAR publishes its checkpoints."""
    folder = tmp_path / "published"
    model = Qwen2ForCausalLM.from_pretrained(policy)
    model.get_input_embeddings().weight.data.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    read_tokenizer(policy).save_pretrained(folder)
    edit(
        folder / "config.json",
        architectures=["SimpARForCausalLM"],
        model_type="llava_qwen",
        image_layout=None,
        rope_parameters=None,
        rope_theta=1e6,
        eos_token_id=2,
        mm_projector_type="linear",
    )
    (folder / "generation_config.json").write_text(json.dumps(ADVICE))
    return folder


def edit(file: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes one."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_free_of_advice(folder: Path) -> None:
    """Plain `generate` penalises nothing and stops at the length alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is Qwen2ForCausalLM
    settings = model.generation_config
    assert settings.eos_token_id is None and model.config.eos_token_id is None
    assert settings.repetition_penalty in (None, 1.0)
    assert not settings.do_sample
    assert model.generate(torch.tensor([[1, 2]]), max_new_tokens=30, pad_token_id=0).shape == (1, 32)


def test_language_model_gets_rows_at_the_mean_of_its_own(language_model, policy):
    before, after = tensors(language_model), tensors(policy)
    embedding = "model.embed_tokens.weight"
    text, rows = len(WORDS), after[embedding]
    assert rows.shape == (text + len(SPECIAL_TOKENS) + 100, 64)
    assert torch.equal(rows[:text], before[embedding][:text])
    mean = before[embedding][:text].mean(0)
    torch.testing.assert_close(rows[text:], mean.expand(107, -1))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - {embedding})
    assert read_layout(policy) == ImageLayout(14, 100, 4, 4, "A photo of ")
    encode = read_encoder(policy)
    assert encode("two dogs") == [7, 1, 2, 3, 4, 6, 9]
    ids = torch.tensor([[1, 2, 3]])
    logits = [
        AutoModelForCausalLM.from_pretrained(folder)(ids).logits[..., :text] for folder in (language_model, policy)
    ]
    torch.testing.assert_close(*logits)
    assert_free_of_advice(policy)


def test_published_checkpoint_keeps_its_weights_and_loses_its_advice(published, tmp_path):
    convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=64)
    before, after = tensors(published), tensors(tmp_path / "p")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "p" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen2", ["Qwen2ForCausalLM"])
    assert config["rope_parameters"]["rope_theta"] == 1e6
    assert "mm_projector_type" not in config
    assert read_layout(tmp_path / "p") == ImageLayout(14, 100, 8, 8, "A highly realistic image of ")
    assert_free_of_advice(tmp_path / "p")


def test_policy_changes_its_grid_and_prefix_alone(policy, tmp_path):
    finer = convert(policy, tmp_path / "finer", geometry=GEOMETRY, resolution=64)
    assert finer == read_layout(tmp_path / "finer") == ImageLayout(14, 100, 8, 8, "A photo of ")
    renamed = convert(policy, tmp_path / "renamed", geometry=GEOMETRY, resolution=32, prompt_prefix="")
    assert renamed == read_layout(tmp_path / "renamed") == ImageLayout(14, 100, 4, 4, "")
    before, after = tensors(policy), tensors(tmp_path / "finer")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_policy(tmp_path / "renamed")[1]("two dogs") == [7, 4, 6, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_of_the_weights_is_kept(language_model, tmp_path, dtype):
    tokenizer = read_tokenizer(language_model)
    source = write_language_model(tmp_path / "lm", tokenizer, len(tokenizer), SMALL, dtype)  # without padding rows
    convert(source, tmp_path / "p", geometry=GEOMETRY, resolution=32)
    assert {tensor.dtype for tensor in tensors(tmp_path / "p").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "p").dtype == dtype


def rewrite(folder: Path, change) -> None:
    """Write the tensors anew, as one file, after `change` edited the dictionary."""
    weights = tensors(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    change(weights)
    save_file(weights, folder / "model.safetensors")


NORM, EMBEDDING, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(NORM), f'Missing key.*"{NORM}"'),
        (lambda w: w.pop(EMBEDDING), f'Missing key.*"{EMBEDDING}"'),
        (
            lambda w: w.update({"model.mm_projector.weight": w[NORM].clone()}),
            "Unexpected key.*model.mm_projector.weight",
        ),
        (lambda w: w.update({NORM: w[NORM][:32].clone()}), f"size mismatch for {NORM}.*32"),
        (lambda w: w.update({EMBEDDING: w[EMBEDDING][:99].clone()}), f"size mismatch for {EMBEDDING}.*99, 64.*114, 64"),
        (lambda w: w.update({HEAD: w[EMBEDDING] + 1}), "lm_head.weight differs from model.embed_tokens.weight"),
        (lambda w: w.update({NORM: w[NORM].bfloat16()}), "expected float32 or bfloat16 throughout"),
        (lambda w: w.update({n: t.half() for n, t in w.items()}), "weights are torch.float16; expected float32"),
    ],
)
def test_weights_of_another_model_are_refused(published, tmp_path, change, message):
    rewrite(published, change)
    with pytest.raises(UserError, match="(?s)" + message) as error:
        convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)
    assert str(published) in str(error.value)
    assert not (tmp_path / "p").exists()


def test_head_that_repeats_the_embedding_is_a_tied_one(published, tmp_path):
    rewrite(published, lambda w: w.update({HEAD: w[EMBEDDING].clone()}))
    edit(published / "config.json", tie_word_embeddings=False)
    convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)
    assert HEAD not in tensors(tmp_path / "p")
    model, _ = load_policy(tmp_path / "p")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_head_that_is_neither_there_nor_tied_is_missing(published, tmp_path):
    edit(published / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserError, match=f'Missing key.*"{HEAD}"'):
        convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)


def test_pickled_weights_are_not_read(published, policy, tmp_path):
    torch.save(tensors(published), published / "pytorch_model.bin")
    convert(published, tmp_path / "beside", geometry=GEOMETRY, resolution=32)  # the safetensors are there as well
    for file in published.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UserError, match=r"model.safetensors: not found; .* pickled ones \(.bin\) can run code"):
        convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)
    shutil.copytree(policy, tmp_path / "own")
    torch.save(tensors(policy), tmp_path / "own" / "pytorch_model.bin")
    (tmp_path / "own" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="own: the weights cannot be loaded"):
        load_policy(tmp_path / "own")


def test_missing_and_damaged_files_are_named(published, tmp_path):
    shard = sorted(published.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    for damaged, message in [(content[:1000], "not a readable safetensors file"), (None, "not found")]:
        shard.unlink()
        if damaged:
            shard.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{shard}: {message}"):
            convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)
    for name, message in [
        ("model.safetensors.index.json", "not a readable index"),
        ("tokenizer.json", "tokenizer.json: not a readable tokenizer"),
        ("config.json", "not a readable model configuration"),
    ]:
        (published / name).write_text("{ not what it should be")
        with pytest.raises(UserError, match=message):
            convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": None, "rope_theta": None}, "num_key_value_heads, rope_theta missing"),
        ({"hidden_size": "large"}, "config.json: not a readable model configuration"),
        ({"vocab_size": 150}, "vocab_size is 150, expected 114: 14 text ids and 100 codes"),
        ({"vocab_size": 113}, "vocab_size is 113, expected 114"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(published, tmp_path, changes, message):
    edit(published / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        convert(published, tmp_path / "p", geometry=GEOMETRY, resolution=32)


def test_language_model_with_fewer_rows_than_ids_is_refused(language_model, tmp_path):
    shutil.copytree(language_model, tmp_path / "lm")
    edit(tmp_path / "lm" / "config.json", vocab_size=6)
    with pytest.raises(UserError, match="vocab_size is 6, expected 7: 7 text ids and 0 codes"):
        convert(tmp_path / "lm", tmp_path / "p", geometry=GEOMETRY, resolution=32)


def test_special_tokens_in_another_place_are_refused(language_model, tmp_path):
    for i, tokens in enumerate([SPECIAL_TOKENS[:3], SPECIAL_TOKENS[::-1], (*SPECIAL_TOKENS, "<|more|>")]):
        source = tmp_path / str(i)
        shutil.copytree(language_model, source)
        tokenizer = read_tokenizer(source)
        tokenizer.add_tokens(list(tokens), special_tokens=True)
        tokenizer.save_pretrained(source)
        with pytest.raises(UserError, match="expected none of them, or all, in this order, as its last ids"):
            convert(source, tmp_path / "p", geometry=GEOMETRY, resolution=32)


@pytest.mark.parametrize(
    ("geometry", "resolution", "message"),
    [
        (GEOMETRY, 36, "resolution 36: expected a multiple of 8"),
        (GEOMETRY, 0, "resolution 0: expected a multiple of 8"),
        (GEOMETRY, 512, "an image has 4096 codes, but the model has 1100 positions"),
        (OFFICIAL, 64, "visual tokenizer with levels .* has 64000 codes, but the policy was built for 100"),
    ],
)
def test_images_that_do_not_fit_the_policy_are_refused(policy, tmp_path, geometry, resolution, message):
    with pytest.raises(UserError, match=message):
        convert(policy, tmp_path / "p", geometry=geometry, resolution=resolution)


def test_command_writes_a_policy_and_never_over_another(language_model, tmp_path, capsys):
    arguments = ["--source", str(language_model), "--output", str(tmp_path / "p"), "--resolution", "512"]
    create_policy(parser().parse_args([*arguments, "--prompt-prefix", "photo"]))
    assert "14 text ids and 64000 codes, images of 32 x 32 codes, prompts <|t2i|>A photo of" in capsys.readouterr().out
    assert read_layout(tmp_path / "p") == ImageLayout(14, 64_000, 32, 32, "A photo of ")
    with pytest.raises(UserError, match="p: exists already; a policy is written to a new folder"):
        create_policy(parser().parse_args(arguments))


def trained_policy(folder: Path, geometry: dict) -> Path:
    """A bfloat16 policy with the real tokenizer: made from a language model, and saved anew as a learner does."""
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    write_language_model(folder / "qwen", tokenizer, 151_936, geometry, torch.bfloat16)
    convert(folder / "qwen", folder / "start", geometry=OFFICIAL, resolution=64)
    model, encode = load_policy(folder / "start", torch.bfloat16)
    embedding = model.get_input_embeddings().weight
    assert embedding.shape == (215_672, geometry["hidden_size"])
    # As training leaves them: rows that are all the same could not be told apart.
    embedding.data[151_665:] += 0.05 * torch.randn(64_007, geometry["hidden_size"]).to(torch.bfloat16)
    save_policy(folder / "trained", model, encode.tokenizer, model.state_dict())
    return folder / "trained"


real_tokenizer = pytest.mark.skipif(not QWEN.exists(), reason=f"{QWEN} is missing")


@real_tokenizer
@pytest.mark.parametrize("geometry", [SMALL, pytest.param(HALF_BILLION, marks=pytest.mark.slow)])
def test_published_layout_has_the_same_log_probs_in_transformers_and_vllm(tmp_path, engine_config, geometry):
    from simplear_rl.rollout.vllm_engine import VllmEngine

    folder = trained_policy(tmp_path, geometry)
    layout = read_layout(folder)
    assert layout == ImageLayout(151_672, 64_000, 4, 4, "A highly realistic image of ")
    (rollout,) = VllmEngine(folder, engine_config).generate(Draw([Prompt(0, "two dogs")], 2, 0, 0, Sampling()))
    assert (rollout.prompt_ids[0], rollout.prompt_ids[-1]) == (151_665, 151_667)
    model, _ = load_policy(folder)
    with torch.no_grad():
        own = rollout_log_probs(model, [rollout], layout).numpy()
    assert np.abs(own - rollout.log_probs).max() < 1e-4
    assert own.std() > 0.01


@real_tokenizer
def test_stock_vllm_and_transformers_load_it_as_it_is(tmp_path):
    from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM as StockQwen2

    from simplear_rl.rollout.vllm_engine import LLM, ModelRegistry, SamplingParams  # with the environment that it sets

    # As an object: vLLM inspects classes that it knows by name in a process of its own, which imports torchvision.
    ModelRegistry.register_model("Qwen2ForCausalLM", StockQwen2)
    folder = trained_policy(tmp_path, SMALL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("<|t2i|>A photo of two dogs<|soi|>").input_ids
    assert ids == [151_665, *AutoTokenizer.from_pretrained(QWEN)("A photo of two dogs").input_ids, 151_667]
    llm = LLM(
        str(folder),
        dtype="float32",
        max_model_len=64,
        kv_cache_memory_bytes=2**24,
        enforce_eager=True,
        logprobs_mode="raw_logits",
        max_logprobs=1000,
    )
    assert llm.llm_engine.model_config.architecture == "Qwen2ForCausalLM"
    (output,) = llm.generate({"prompt_token_ids": ids}, SamplingParams(temperature=0, max_tokens=1, logprobs=1000))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ids])).logits[0, -1]
    found = output.outputs[0].logprobs[0]
    assert len(found) == 1000
    assert min(found) < 151_672 < max(found)
    assert max(abs(entry.logprob - logits[token].item()) for token, entry in found.items()) < 1e-4
    assert output.outputs[0].token_ids == [logits.argmax().item()]


def test_tokenizer_of_vocabulary_and_merges_is_read_with_equal_ids(tmp_path):
    """The files of Transformers 4 with use_fast=False."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d"), ("\u0120", "red"), ("c", "a"), ("ca", "t")]
    words = [*alphabet, *(a + b for a, b in merges)]
    added = ["<|endoftext|>", "<|im_end|>", *SPECIAL_TOKENS]
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    decoder = {
        len(words) + i: {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False}
        for i, token in enumerate(added)
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, automatic = read_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["a red cat", " red  red", "\u00e9 \u4e00\u53ea", "<|soi|>"]
    assert [tokenizer(text).input_ids for text in texts] == [automatic(text).input_ids for text in texts]
    assert len(tokenizer) == len(words) + len(added) and tokenizer("red cat").input_ids[0] == words.index("red")
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="tokenizer.json is missing, or vocab.json and merges.txt"):
        read_tokenizer(folder)


def test_what_transformers_4_reads_is_there(policy, tmp_path):
    """Version 4 takes 10,000 where `rope_theta` is missing, and knows neither class nor keys of version 5."""
    model, encode = load_policy(policy)
    model.config.rope_parameters["rope_theta"] = 1e6
    save_policy(tmp_path / "p", model, encode.tokenizer, model.state_dict())
    assert json.loads((tmp_path / "p" / "config.json").read_text())["rope_theta"] == 1e6
    assert load_policy(tmp_path / "p")[0].config.rope_parameters["rope_theta"] == 1e6
    values = json.loads((tmp_path / "p" / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not values.keys() & {"backend", "extra_special_tokens"}
    assert isinstance(values["additional_special_tokens"], list)
    assert read_tokenizer(tmp_path / "p").get_vocab() == encode.tokenizer.get_vocab()
    # It is the same when it is read and written once more.
    model, encode = load_policy(tmp_path / "p")
    save_policy(tmp_path / "again", model, encode.tokenizer, model.state_dict())
    for name in "config.json", "tokenizer_config.json", "tokenizer.json":
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "p" / name).read_bytes()
