"""AdamW's parameter groups and the learning rate of each step."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from simplear_rl.config.learner import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Matrices, then norms and biases: always apart, so that a run can continue with the other `decay_norms`."""
    parts = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]
    decays = weight_decays(config)
    return [{"params": part, "weight_decay": decay} for part, decay in zip(parts, decays, strict=True)]


def weight_decays(config: OptimizerConfig) -> tuple[float, float]:
    """Of matrices, and of norms and biases."""
    return config.weight_decay, config.weight_decay if config.decay_norms else 0.0


def schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> LambdaLR:
    """The rate of each of `steps` optimizer steps. Step 1 of a warm-up of N steps has 1 / N of it, step N the whole."""

    def share(done: int) -> float:
        if done < config.warmup_steps:
            return (done + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        progress = (done - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1, progress)))

    return LambdaLR(optimizer, share)
