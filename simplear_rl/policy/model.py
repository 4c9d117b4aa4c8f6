"""Create, load and save the policy: a Hugging Face Qwen2 folder with its text tokenizer and image layout."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from simplear_rl.errors import UserError, some_of
from simplear_rl.files import write_text
from simplear_rl.policy.vocabulary import SPECIAL_TOKENS, ImageLayout, PromptEncoder, read_encoder


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A text tokenizer with one id per word and SimpleAR's special tokens at the end."""
    vocabulary = {word: i for i, word in enumerate(["<|unk|>", "<|pad|>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<|unk|>", pad_token="<|pad|>")
    tokenizer.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)
    return tokenizer


def random_policy(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    codebook_size: int,
    grid: tuple[int, int],
    prompt_prefix: str,
    geometry: dict[str, int],
    seed: int,
) -> None:
    """Write a randomly initialised policy of the given Qwen2 geometry (hidden_size, num_hidden_layers, ...)."""
    layout = ImageLayout(len(tokenizer), codebook_size, *grid, prompt_prefix)
    config = Qwen2Config(
        **geometry,
        vocab_size=layout.vocabulary_size,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        image_layout=asdict(layout),
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config)
    save_policy(folder, model, tokenizer, model.state_dict())


def load_policy(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Qwen2ForCausalLM, PromptEncoder]:
    """Load a policy folder. Raises UserError if it is missing, damaged or not an image policy."""
    encoder = read_encoder(folder)
    try:
        model, loading = Qwen2ForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: the weights cannot be loaded: {error}") from error
    for what in "missing", "unexpected":  # Transformers would go on, with random weights for those that are missing
        if names := sorted(loading[f"{what}_keys"]):
            raise UserError(f"{folder}: {what} weights: {some_of(names, 3)}: they are not those of this policy")
    return model, encoder


def save_policy(folder: Path, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, weights: dict) -> None:
    """Write `weights` as a folder that Transformers, version 4 as well, and vLLM load unchanged."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    # Transformers 5 writes its own names. Version 4 takes a base of 10,000 where it does not find `rope_theta`.
    _edit(folder / "config.json", rope_theta=model.config.rope_parameters["rope_theta"])
    special = [str(token) for token in tokenizer.extra_special_tokens]
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": special}
    _edit(folder / "tokenizer_config.json", "backend", "extra_special_tokens", **names)


def _edit(file: Path, *without: str, **values: object) -> None:
    """Set and remove keys of a JSON file."""
    kept = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key not in without}
    write_text(file, json.dumps(kept | values, indent=2, ensure_ascii=False) + "\n")
