"""Makes what a command on the miniature world needs and does not find: tokenizer, reward model, data, random policy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from simplear_rl.config.base import CommandConfig
from simplear_rl.files import new_folder, write_text
from simplear_rl.policy.prompt_prefixes import PROMPT_PREFIXES
from simplear_rl.shapes import world
from simplear_rl.shapes.tokenizer_training import train_tokenizer
from simplear_rl.tokenizers.cosmos import CosmosTokenizer, read_geometry, read_identity
from simplear_rl.tokenizers.fsq import export

TOKENIZER_STEPS, CLIP_STEPS = 400, 900
PRETRAIN_IMAGES, SFT_IMAGES, PAIRS = 20_000, 6_000, 4_000
PROMPT_PREFIX = PROMPT_PREFIXES["photo"]
POLICY_GEOMETRY = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def products(root: Path) -> dict[Path, Callable[[Path, CommandConfig], None]]:
    """What can be made below `root`, and how."""
    return {
        root / "tokenizer": _tokenizer,
        root / "clip": _clip,
        root / "policy": _policy,
        root / "data" / "pretrain": _pretrain_shards,
        root / "data" / "sft": _sft_shards,
        root / "data" / "pairs": _pair_shards,
        root / "data" / "prompts.txt": _prompts,
    }


def make(path: Path, config: CommandConfig) -> None:
    """Make one of `products`, and before it the tokenizer if that is missing."""
    announce(path)
    products(config.root)[path](path, config)


def announce(path: Path) -> None:
    """Say what is made now."""
    print(f"{path} is missing: making it", flush=True)


def _require_tokenizer(config: CommandConfig) -> None:
    if config.tokenizer == config.root / "tokenizer" and not config.tokenizer.exists():
        make(config.tokenizer, config)


def _tokenizer(path: Path, config: CommandConfig) -> None:
    model = train_tokenizer(config.seed, TOKENIZER_STEPS)
    with new_folder(path) as folder:
        export(model, folder)


def _clip(path: Path, config: CommandConfig) -> None:
    from simplear_rl.shapes.clip_training import train_clip  # takes seconds to import, and most commands make nothing

    _require_tokenizer(config)
    with new_folder(path) as folder:
        train_clip(folder, CosmosTokenizer(config.tokenizer), config.seed, CLIP_STEPS)


def _policy(path: Path, config: CommandConfig) -> None:
    from simplear_rl.policy.model import random_policy, word_tokenizer  # as above

    _require_tokenizer(config)
    geometry = read_geometry(config.tokenizer)
    side = world.SIZE // geometry.patch
    with new_folder(path) as folder:
        random_policy(
            folder,
            word_tokenizer(policy_words()),
            codebook_size=geometry.codebook_size,
            grid=(side, side),
            prompt_prefix=PROMPT_PREFIX,
            geometry=POLICY_GEOMETRY,
            seed=config.seed,
        )


def policy_words() -> list[str]:
    """The words that the world's policy has ids for."""
    return sorted({*world.WORDS, *PROMPT_PREFIX.split()})


def _pretrain_shards(path: Path, config: CommandConfig) -> None:
    captions, images = world.pretrain_samples(PRETRAIN_IMAGES, config.seed)
    _shards(path, config, captions, codes=images)


def _sft_shards(path: Path, config: CommandConfig) -> None:
    captions, images = world.sft_samples(SFT_IMAGES, config.seed)
    _shards(path, config, captions, codes=images)


def _pair_shards(path: Path, config: CommandConfig) -> None:
    captions, chosen, rejected = world.pair_samples(PAIRS, config.seed)
    _shards(path, config, captions, chosen=chosen, rejected=rejected)


def _shards(path: Path, config: CommandConfig, captions: list[str], **images: np.ndarray) -> None:
    """One shard; `images` by the name of the column that gets their codes."""
    _require_tokenizer(config)
    tokenizer = CosmosTokenizer(config.tokenizer)
    codes = {name: list(tokenizer.encode(part).astype("uint16")) for name, part in images.items()}
    with new_folder(path) as folder:
        table = pa.table({"caption": captions} | codes)
        about = {"simplear_rl": json.dumps({"tokenizer": read_identity(config.tokenizer)})}
        parquet.write_table(table.replace_schema_metadata(about), folder / "00000.parquet")


def _prompts(path: Path, config: CommandConfig) -> None:
    write_text(path, "\n".join(world.rl_prompts()) + "\n")
