"""Policies to measure with: random weights, published and smaller sizes."""

from dataclasses import replace
from pathlib import Path

from simplear_rl.policy.model import random_policy, word_tokenizer
from simplear_rl.policy.sizes import PolicySizes, published

PUBLISHED = ("simplear-0.5b", "simplear-1.5b")
SMALL = {
    "1m": PolicySizes(128, 3, 4, 2, 32, 384, 1_200, 1_000, 0),
    "5m": PolicySizes(256, 6, 4, 4, 64, 704, 5_000, 4_000, 0),
    "20m": PolicySizes(512, 6, 8, 8, 64, 1408, 5_000, 4_000, 0),
    "60m": PolicySizes(768, 10, 12, 12, 64, 2048, 5_000, 4_000, 0),
}
NAMES = (*PUBLISHED, *SMALL)
PROMPT = "a red circle"  # every policy knows its words


def sizes_of(name: str, resolution: int) -> PolicySizes:
    """The sizes of one of NAMES, for images of so many pixels along each side; a code is 16 x 16 of them."""
    if name in PUBLISHED:
        return published(name, resolution)
    return replace(SMALL[name], tokens=(resolution // 16) ** 2)


def tiny(tokens: int) -> PolicySizes:
    """Sizes so small that a device spends its time on starting operators."""
    return PolicySizes(64, 4, 2, 2, 32, 128, 128, 100, tokens)


def geometry(decoder: PolicySizes) -> dict[str, int]:
    """The same sizes under the names of Qwen2Config, without the vocabulary."""
    return {
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.ffn,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "max_position_embeddings": decoder.tokens + 64,
    }


def write_policy(folder: Path, decoder: PolicySizes) -> None:
    """A random policy of these sizes; all of its text ids are words."""
    side = int(decoder.tokens**0.5)
    words = [*PROMPT.split(), *(f"word{i}" for i in range(decoder.vocabulary - decoder.codes - 12))]
    random_policy(
        folder,
        word_tokenizer(words),
        codebook_size=decoder.codes,
        grid=(side, side),
        prompt_prefix="",
        geometry=geometry(decoder),
        seed=0,
    )
