"""The loss of pretraining and SFT."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from simplear_rl.policy.log_probs import in_chunks

if TYPE_CHECKING:  # takes seconds to import, and the drivers do without
    from transformers import Qwen2ForCausalLM


def summed_cross_entropy(
    model: "Qwen2ForCausalLM", ids_BL: torch.Tensor, labels_BL: torch.Tensor, weights_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum of next-token cross-entropies over the full vocabulary, weighted by row; label -100 is not counted."""
    # Right padding needs no mask: attention is causal, and padded positions have no label.
    hidden_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state

    # Not the module: ZeRO-3 counts its calls, and ranks whose captions differ in length have other numbers of chunks.
    head_CH = model.lm_head.weight[:]

    def of_rows(hidden_NH: torch.Tensor, labels_N: torch.Tensor, *weights_N: torch.Tensor) -> torch.Tensor:
        logits_NC = nn.functional.linear(hidden_NH, head_CH).float()
        if not weights_N:
            return nn.functional.cross_entropy(logits_NC, labels_N, reduction="sum")
        return nn.functional.cross_entropy(logits_NC, labels_N, reduction="none") @ weights_N[0]

    labels_BT = labels_BL[:, 1:]
    weights = [] if weights_B is None else [weights_B[:, None].expand_as(labels_BT).flatten()]
    parts = in_chunks(of_rows, model.config.vocab_size, hidden_BLH.flatten(0, 1), labels_BT.flatten(), *weights)
    return torch.stack(parts).sum()
