"""How much of the device's arithmetic a training step uses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from simplear_rl.gpus import GPUS, gpu_name

if TYPE_CHECKING:  # takes seconds to import, and the drivers do without
    from transformers import Qwen2ForCausalLM


@dataclass(frozen=True)
class ModelSize:
    """What the operations of a decoder depend on."""

    weights: int  # N: weights that take part in matrix products, the head's (tied or not) among them
    layers: int
    heads: int
    head_size: int

    @classmethod
    def of(cls, model: "Qwen2ForCausalLM") -> "ModelSize":
        """The size of a model whose weights are not sharded yet."""
        weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
        head_size = model.model.layers[0].self_attn.head_dim
        return cls(weights, model.config.num_hidden_layers, model.config.num_attention_heads, head_size)


def training_flops(size: ModelSize, lengths: np.ndarray) -> float:
    """Operations of forward and backward pass over sequences of `lengths` tokens, padding and recomputation left out.

    A token of a sequence of T tokens takes 6 N + 12 L H Q T (L layers, H heads of size Q): PaLM, appendix B
    (arXiv 2204.02311). Attention is counted in full there, although half of it is masked.
    """
    attention = 12 * size.layers * size.heads * size.head_size
    tokens = lengths.astype(float)
    return float((tokens * (6 * size.weights + attention * tokens)).sum())


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 operations per second of a device, by its name; None if it is not in the table of GPUs."""
    name = gpu_name(device)
    return GPUS[name].bfloat16 if name else None


def throughput(size: ModelSize, lengths: np.ndarray, seconds: float, peak: float | None) -> dict[str, float]:
    """`tokens_per_second` of a step on one device and, if its peak is known, `mfu`: the model FLOPs utilisation."""
    metrics = {"tokens_per_second": float(lengths.sum() / seconds)}
    return metrics | ({"mfu": training_flops(size, lengths) / seconds / peak} if peak else {})
