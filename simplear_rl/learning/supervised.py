"""Pretraining and SFT: next-token cross-entropy over text and visual ids, averaged over the tokens of the batch."""

from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from simplear_rl.config.data import TokenDataConfig
from simplear_rl.data.batches import Prefetcher, TokenBatch, TokenDataset
from simplear_rl.learning.flops import throughput
from simplear_rl.policy.log_probs import in_chunks
from simplear_rl.policy.rollouts import ScoredRollout
from simplear_rl.run.guards import Evidence

if TYPE_CHECKING:  # the learner brings DeepSpeed, which the drivers do without
    from simplear_rl.learning.learner import Learner


class Supervised:
    """The objective of both stages: reads the rank's share of each batch and trains on it.

    Raises:
        UserError: a row of the token shards is bad; names it.
    """

    def __init__(self, learner: "Learner", config: TokenDataConfig, seed: int):
        self.learner, self.batch_size = learner, config.batch_size
        data = TokenDataset(config, learner.encode, learner.layout, seed, learner.rank, learner.ranks)
        self.batch = Prefetcher(data.batch)

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


def summed_cross_entropy(
    model: Qwen2ForCausalLM, ids_BL: torch.Tensor, labels_BL: torch.Tensor, weights_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of next-token cross-entropies over the full vocabulary, weighted by row; label -100 is not counted."""
    # Right padding needs no mask: attention is causal, and padded positions have no label.
    hidden_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state

    def of_rows(hidden_NH: torch.Tensor, labels_N: torch.Tensor, *weights_N: torch.Tensor) -> torch.Tensor:
        logits_NC = model.lm_head(hidden_NH).float()
        if not weights_N:
            return nn.functional.cross_entropy(logits_NC, labels_N, reduction="sum")
        return nn.functional.cross_entropy(logits_NC, labels_N, reduction="none") @ weights_N[0]

    labels_BT = labels_BL[:, 1:]
    weights = [] if weights_B is None else [weights_B[:, None].expand_as(labels_BT).flatten()]
    parts = in_chunks(of_rows, model.config.vocab_size, hidden_BLH.flatten(0, 1), labels_BT.flatten(), *weights)
    return torch.stack(parts).sum()


def _evidence(learner: "Learner", batch: TokenBatch, rows: np.ndarray) -> Evidence:
    ids = [batch.ids[row] for row in rows]
    prompts = [learner.encode.tokenizer.decode(row[row < learner.layout.visual_offset]) for row in ids]
    about = f"the {len(ids)} rows that begin with {prompts[0]!r}"
    arrays = {"prompt": prompts, "lengths": [len(row) for row in ids], "ids": np.concatenate(ids)}
    return Evidence(about, f"rank-{learner.rank}", arrays)
