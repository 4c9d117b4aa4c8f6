"""Batches of token sequences."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from simplear_rl.config.data import PairDataConfig, ShardDataConfig, TokenDataConfig
from simplear_rl.data.order import pieces, shares
from simplear_rl.data.shards import IMAGE, PAIR, TokenRow, TokenShards
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Prompt, Rollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout, PromptEncoder


@dataclass(frozen=True)
class TokenBatch:
    """One rank's sequences `prompt + visual ids` of one step; every token but the first of each is a target."""

    ids: list[np.ndarray]  # int64, of unequal lengths
    truncated: int = 0  # how many captions were cut to fit
    weights: np.ndarray | None = None  # float32 [rows], of each sequence's loss; None: all are 1

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


class ShardDataset:
    """The rows of a run, from one source or several mixed by weight.

    What all ranks together train on in a step depends on the configuration, the seed and the step alone; this rank
    builds every `ranks`-th sequence of it. The order of a source is that of `data.order.pieces`.

    Raises:
        UserError: see TokenShards, here for what the footers show, in `batch` for the rest; in `batch` also for a
            caption that is too long, unless it is to be truncated.
    """

    images: tuple[str, ...] = IMAGE

    def __init__(
        self,
        config: ShardDataConfig,
        encode: PromptEncoder,
        layout: ImageLayout,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.data, self.layout, self.seed, self.rank, self.ranks = config, layout, seed, rank, ranks
        self.encode = PromptEncoder(encode.tokenizer, layout, min(encode.max_tokens, config.max_prompt_tokens))
        self.sources = [TokenShards(source.shards, layout, self.images) for source in config.sources]

    def _draws(self, step: int, number: int) -> np.ndarray:
        """Uniforms in [0, 1) for this rank's rows; `number`, an odd one, tells what they decide."""
        return np.random.default_rng((self.seed, step, number)).random(self.data.batch_size)[self.rank :: self.ranks]

    def _rows(self, step: int) -> Iterator[TokenRow]:
        weights, factors = zip(*((source.weight, source.factor) for source in self.data.sources), strict=True)
        firsts, lasts = (shares(n * self.data.batch_size, weights) for n in (step - 1, step))
        position = 0  # within the batch of all ranks
        for i, (shards, factor) in enumerate(zip(self.sources, factors, strict=True)):
            for piece in pieces(firsts[i], lasts[i], shards.sizes, self.data.shuffle_rows, self.seed, i):
                own = piece.rows[(self.rank - position) % self.ranks :: self.ranks]
                for row in shards.rows(piece, own):
                    yield row if factor == 1 else replace(row, weight=factor * row.weight)
                position += len(piece.rows)

    def _prompt(self, caption: str, place: str, drop: float) -> tuple[list[int], bool]:
        """Prompt ids, and whether the caption had to be cut. `drop` is a uniform that decides whether it is dropped."""
        if drop < self.data.drop_caption:
            return self.encode.null, False
        text, room = self.encode.text_ids(caption), self.encode.max_text_tokens
        if len(text) > room and self.data.long_caption == "refuse":
            raise UserError(
                f"{place}: the caption has {len(text)} tokens with its prefix, there is room for {room} "
                "(data.max_prompt_tokens, or the model's positions); data.long_caption: truncate would cut it"
            )
        return self.encode.around(text[:room]), len(text) > room


class TokenDataset(ShardDataset):
    """The batches of pretraining and SFT."""

    def __init__(self, config: TokenDataConfig, *args: Any, **options: Any):
        super().__init__(config, *args, **options)
        self.config = config

    def batch(self, step: int) -> TokenBatch:
        """The batch of one step (1, 2, ...): this rank's share of it."""
        ids, weights, truncated = [], [], 0
        for row, drop, shorten in zip(self._rows(step), self._draws(step, 1), self._draws(step, 3), strict=True):
            caption = row.short_caption if row.short_caption and shorten < self.config.short_caption else row.caption
            prompt, cut = self._prompt(caption, row.place, drop)
            truncated += cut
            ids.append(np.concatenate([prompt, row.codes.astype(np.int64) + self.layout.visual_offset]))
            weights.append(row.weight)
        equal = all(weight == 1 for weight in weights)
        return TokenBatch(ids, truncated, None if equal else np.array(weights, np.float32))


class PairDataset(ShardDataset):
    """The pairs of DPO."""

    images = PAIR

    def __init__(self, config: PairDataConfig, *args: Any, **options: Any):
        super().__init__(config, *args, **options)
        self.sampling = Sampling(guidance_scale=config.guidance_scale)

    def batch(self, step: int) -> tuple[list[Rollout], int]:
        """The pairs of one step (1, 2, ...), each a rollout of two images, the chosen one first.

        Nobody drew them: their behaviour log-probs are NaN. And how many captions were cut to fit.
        """
        pairs, truncated = [], 0
        unconditional = self.encode.null if self.sampling.guidance_scale != 1 else None
        for i, (row, drop) in enumerate(zip(self._rows(step), self._draws(step, 1), strict=True)):
            prompt, cut = self._prompt(row.caption, row.place, drop)
            truncated += cut
            unknown = np.full(row.codes.shape, np.nan, np.float32)
            text = Prompt(i, row.caption)
            pairs.append(Rollout(text, prompt, unconditional, row.codes, unknown, self.sampling, 0, self.seed, step))
        return pairs, truncated


Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """Calls `batch(step)`, and already makes the batch of the next step in the background."""

    def __init__(self, batch: Callable[[int], Batch]):
        self.batch = batch
        self.worker = ThreadPoolExecutor(1)  # a single one: the data set is read by one thread at a time
        self.coming: dict[int, Future[Batch]] = {}

    def __call__(self, step: int) -> Batch:
        """The batch of `step`, as `batch` makes it; raises what `batch` raises."""
        this = self.coming.get(step) or self.worker.submit(self.batch, step)
        self.coming = {step + 1: self.worker.submit(self.batch, step + 1)}
        return this.result()
