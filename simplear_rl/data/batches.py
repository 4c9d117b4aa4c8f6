"""Batches of token sequences."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import parquet

from simplear_rl.config import TokenDataConfig
from simplear_rl.data.order import items_of_step
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder


@dataclass(frozen=True)
class TokenBatch:
    """Sequences `prompt + visual ids` of one step; every token but the first of each is a target."""

    ids: list[np.ndarray]  # int64, of unequal lengths

    @property
    def target_tokens(self) -> int:
        return sum(len(row) - 1 for row in self.ids)

    def padded(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, L] and labels [B, L] of the chosen rows, padded on the right (labels with -100)."""
        chosen = [torch.from_numpy(self.ids[row]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(chosen, True, 0).to(device), pad(chosen, True, -100).to(device)


class TokenDataset:
    """Parquet shards of captions and codes.

    Raises:
        UserError: no shards, missing columns, codes of the wrong number or outside the codebook, an empty caption;
            names the file and the row.
    """

    def __init__(self, config: TokenDataConfig, encode: PromptEncoder, layout: ImageLayout, seed: int):
        files = sorted(config.shards.glob("*.parquet"))
        if not files:
            raise UserError(f"{config.shards}: no Parquet shards there (data.shards)")
        tables = [_read_shard(file, layout) for file in files]
        self.captions = [caption for captions, _ in tables for caption in captions]
        self.codes = np.concatenate([codes for _, codes in tables])
        self.config, self.encode, self.layout, self.seed = config, encode, layout, seed

    def batch(self, step: int) -> TokenBatch:
        """The batch of one step (1, 2, ...)."""
        rows = items_of_step(step - 1, self.config.batch_size, len(self.codes), self.seed)
        dropped = np.random.default_rng((self.seed, step, 1)).random(len(rows)) < self.config.drop_caption
        return TokenBatch([self._sequence(row, drop) for row, drop in zip(rows, dropped, strict=True)])

    def _sequence(self, row: int, drop_caption: bool) -> np.ndarray:
        prompt = self.encode.null if drop_caption else self.encode(self.captions[row])
        return np.concatenate([prompt, self.codes[row].astype(np.int64) + self.layout.visual_offset])


def _read_shard(file: Path, layout: ImageLayout) -> tuple[list[str], np.ndarray]:
    try:
        table = parquet.read_table(file, columns=["caption", "codes"])
        captions, columns = table["caption"].cast(pa.string()), table["codes"].cast(pa.list_(pa.int64()))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable shard with columns `caption` and `codes`: {error}") from error
    lengths = pc.fill_null(pc.list_value_length(columns), 0).to_numpy()
    for row in np.flatnonzero(lengths != layout.tokens):
        raise UserError(f"{file}: row {row}: {lengths[row]} codes, the policy expects {layout.tokens}")
    codes = pc.fill_null(pc.list_flatten(columns), -1).to_numpy().reshape(len(table), layout.tokens)
    for row in np.flatnonzero(((codes < 0) | (codes >= layout.codebook_size)).any(axis=1)):
        outside = codes[row][(codes[row] < 0) | (codes[row] >= layout.codebook_size)]
        raise UserError(f"{file}: row {row}: code {outside[0]}, the policy expects 0 ... {layout.codebook_size - 1}")
    texts = captions.to_pylist()
    for row, text in enumerate(texts):
        if not text or not text.strip():
            raise UserError(f"{file}: row {row}: empty caption")
    return texts, codes.astype(np.uint16)
