"""Batches of token sequences."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from simplear_rl.config.data import TokenDataConfig
from simplear_rl.data.order import pieces, shares
from simplear_rl.data.shards import TokenRow, TokenShards
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder


@dataclass(frozen=True)
class TokenBatch:
    """One rank's sequences `prompt + visual ids` of one step; every token but the first of each is a target."""

    ids: list[np.ndarray]  # int64, of unequal lengths
    truncated: int = 0  # how many captions were cut to fit

    @property
    def target_lengths(self) -> np.ndarray:
        """Targets of each sequence, int64 [rows]."""
        return np.array([len(row) - 1 for row in self.ids])

    def micro_batches(self, number: int) -> list[np.ndarray]:
        """The rows of each of `number` forward passes: long sequences with long ones, so that little is padded."""
        by_length = np.argsort(self.target_lengths, kind="stable")
        return [np.sort(rows) for rows in np.array_split(by_length, number)]

    def padded(self, rows: Iterable[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, L] and labels [B, L] of the chosen rows, padded on the right (labels with -100)."""
        chosen = [torch.from_numpy(self.ids[row]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(chosen, True, 0).to(device), pad(chosen, True, -100).to(device)


class TokenDataset:
    """The batches of a run, from one source or several mixed by weight.

    What all ranks together train on in a step depends on the configuration, the seed and the step alone; this rank
    builds every `ranks`-th sequence of it. The order of a source is that of `data.order.pieces`.

    Raises:
        UserError: see TokenShards, here for what the footers show, in `batch` for the rest; in `batch` also for a
            caption that is too long, unless it is to be truncated.
    """

    def __init__(
        self,
        config: TokenDataConfig,
        encode: PromptEncoder,
        layout: ImageLayout,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.config, self.layout, self.seed, self.rank, self.ranks = config, layout, seed, rank, ranks
        self.encode = PromptEncoder(encode.tokenizer, layout, min(encode.max_tokens, config.max_prompt_tokens))
        self.sources = [TokenShards(source.shards, layout) for source in config.sources]

    def batch(self, step: int) -> TokenBatch:
        """The batch of one step (1, 2, ...): this rank's share of it."""
        own = slice(self.rank, None, self.ranks)
        dropped = np.random.default_rng((self.seed, step, 1)).random(self.config.batch_size)[own]
        shortened = np.random.default_rng((self.seed, step, 3)).random(self.config.batch_size)[own]
        ids, truncated = [], 0
        for row, drop, shorten in zip(self._rows(step), dropped, shortened, strict=True):
            caption = row.short_caption if row.short_caption and shorten < self.config.short_caption else row.caption
            prompt = self.encode.null
            if drop >= self.config.drop_caption:
                prompt, cut = self._prompt(caption, row.place)
                truncated += cut
            ids.append(np.concatenate([prompt, row.codes.astype(np.int64) + self.layout.visual_offset]))
        return TokenBatch(ids, truncated)

    def _rows(self, step: int) -> Iterator[TokenRow]:
        weights = [source.weight for source in self.config.sources]
        firsts, lasts = (shares(n * self.config.batch_size, weights) for n in (step - 1, step))
        position = 0  # within the batch of all ranks
        for i, shards in enumerate(self.sources):
            for piece in pieces(firsts[i], lasts[i], shards.sizes, self.config.shuffle_rows, self.seed, i):
                yield from shards.rows(piece, piece.rows[(self.rank - position) % self.ranks :: self.ranks])
                position += len(piece.rows)

    def _prompt(self, caption: str, place: str) -> tuple[list[int], bool]:
        """Prompt ids, and whether the caption had to be cut."""
        text, room = self.encode.text_ids(caption), self.encode.max_text_tokens
        if len(text) > room and self.config.long_caption == "refuse":
            raise UserError(
                f"{place}: the caption has {len(text)} tokens with its prefix, there is room for {room} "
                "(data.max_prompt_tokens, or the model's positions); data.long_caption: truncate would cut it"
            )
        return self.encode.around(text[:room]), len(text) > room


class Prefetcher:
    """Calls `batch(step)`, and already makes the batch of the next step in the background."""

    def __init__(self, batch: Callable[[int], TokenBatch]):
        self.batch = batch
        self.worker = ThreadPoolExecutor(1)  # a single one: the data set is read by one thread at a time
        self.coming: dict[int, Future[TokenBatch]] = {}

    def __call__(self, step: int) -> TokenBatch:
        """The batch of `step`, as `batch` makes it; raises what `batch` raises."""
        this = self.coming.get(step) or self.worker.submit(self.batch, step)
        self.coming = {step + 1: self.worker.submit(self.batch, step + 1)}
        return this.result()
