"""Pretraining and SFT: next-token cross-entropy over text and visual ids, averaged over the tokens of the batch."""

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import torch

from simplear_rl.config.data import TokenDataConfig
from simplear_rl.data.batches import Prefetcher, TokenBatch, TokenDataset
from simplear_rl.learning.cross_entropy import summed_cross_entropy
from simplear_rl.learning.flops import throughput
from simplear_rl.learning.validation import Validation
from simplear_rl.policy.rollouts import ScoredRollout
from simplear_rl.run.guards import Evidence

if TYPE_CHECKING:  # the learner brings DeepSpeed, which the drivers do without
    from simplear_rl.learning.learner import Learner


class Supervised:
    """The objective of both stages: reads the rank's share of each batch and trains on it; validates now and then.

    Raises:
        UserError: a row of the token shards is bad; names it.
    """

    def __init__(self, learner: "Learner", config: TokenDataConfig, seed: int, steps: int):
        self.learner, self.batch_size = learner, config.batch_size
        data = TokenDataset(config, learner.encode, learner.layout, seed, learner.rank, learner.ranks)
        self.batch = Prefetcher(data.batch)
        self.validation = Validation(learner, config, config.validation, steps) if config.validation else None

    def images(self, groups: Sequence[ScoredRollout]) -> int:
        """See Objective."""
        return self.batch_size // self.learner.ranks

    def step(self, step: int, groups: Sequence[ScoredRollout] = ()) -> dict[str, float]:
        """See Objective. `tokens_per_second` and `truncated` are of all ranks, as this one sees it."""
        start, ranks = monotonic(), self.learner.ranks
        batch = self.batch(step)
        metrics = train(self.learner, batch)
        speed = throughput(self.learner.size, batch.target_lengths, monotonic() - start, self.learner.peak_flops)
        speed["tokens_per_second"] *= ranks
        if self.validation and self.validation.due(step):
            metrics |= self.validation()
        return metrics | speed | {"truncated": float(batch.truncated * ranks)}


def train(learner: "Learner", batch: TokenBatch) -> dict[str, float]:
    """One step on this rank's share of a batch. `loss` is the rank's part of it, times the number of ranks.

    Each sequence's cross-entropies are multiplied by its weight; the mean is over the tokens, whatever their weights.

    Raises:
        UserError: the loss or a gradient is not finite; the step is not taken.
    """
    loss = 0.0
    targets = torch.tensor(int(batch.target_lengths.sum()), device=learner.device)
    torch.distributed.all_reduce(targets)  # over all ranks
    total = targets.item()
    for rows in batch.micro_batches(learner.micro_batches):
        ids_BL, labels_BL = batch.padded(rows, learner.device)
        weights_B = None if batch.weights is None else torch.from_numpy(batch.weights[rows]).to(learner.device)
        summed = learner.forward(summed_cross_entropy, ids_BL, labels_BL, weights_B)
        # DeepSpeed averages over passes and ranks; the mean over tokens is taken over the whole batch.
        scale = learner.micro_batches * learner.ranks / total
        learner.backward(summed * scale, partial(_evidence, learner, batch, rows))
        loss += summed.item() / total
    return {"loss": loss * learner.ranks, **learner.finish_step()}


def _evidence(learner: "Learner", batch: TokenBatch, rows: np.ndarray) -> Evidence:
    ids = [batch.ids[row] for row in rows]
    prompts = [learner.encode.tokenizer.decode(row[row < learner.layout.visual_offset]) for row in ids]
    about = f"the {len(ids)} rows that begin with {prompts[0]!r}"
    arrays = {"prompt": prompts, "lengths": [len(row) for row in ids], "ids": np.concatenate(ids)}
    return Evidence(about, f"rank-{learner.rank}", arrays)
