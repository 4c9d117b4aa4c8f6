"""The loss of pretraining and SFT."""

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from simplear_rl.policy.log_probs import in_chunks


def summed_cross_entropy(model: Qwen2ForCausalLM, ids_BL: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
    """Sum of next-token cross-entropies over the full vocabulary; label -100 is not counted."""
    # Right padding needs no mask: attention is causal, and padded positions have no label.
    hidden_BLH = model.model(input_ids=ids_BL[:, :-1], use_cache=False).last_hidden_state

    def of_rows(hidden_NH: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model.lm_head(hidden_NH).float(), labels_N, reduction="sum")

    parts = in_chunks(of_rows, model.config.vocab_size, hidden_BLH.flatten(0, 1), labels_BL[:, 1:].flatten())
    return torch.stack(parts).sum()
