"""Policy losses of one prompt group, by name. Each is a pure function of log-probs, advantages and two bounds.

They differ in what happens to samples that the current policy draws more or less often than the old one did. In the
first update of a batch no sample is such a one, and all three have the same gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from simplear_rl.config.learner import LossName


@dataclass(frozen=True)
class PolicyLoss:
    """A loss before it is averaged. Tensors are [G, T], or [G, 1] where the tokens of a sample share one value."""

    loss: torch.Tensor
    ratio: torch.Tensor  # current / old
    clipped_low: torch.Tensor  # bool: what the lower bound took the gradient of
    clipped_high: torch.Tensor


def clipped_policy_loss(
    ratio: torch.Tensor, advantages_G: torch.Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) (PPO, arXiv 1707.06347).

    Separate bounds as in DAPO (arXiv 2503.14476). A sample loses its gradient where its ratio has left the bounds the
    way that its advantage asks for.
    """
    advantages_G1 = advantages_G.unsqueeze(-1)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return PolicyLoss(
        -torch.minimum(ratio * advantages_G1, clipped * advantages_G1),
        ratio,
        (ratio < 1 - clip_low) & (advantages_G1 < 0),
        (ratio > 1 + clip_high) & (advantages_G1 > 0),
    )


def grpo(
    log_probs_GT: torch.Tensor, old_GT: torch.Tensor, advantages_G: torch.Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """The clipped ratio of each token (arXiv 2402.03300)."""
    return clipped_policy_loss(torch.exp(log_probs_GT - old_GT), advantages_G, clip_low, clip_high)


def gspo(
    log_probs_GT: torch.Tensor, old_GT: torch.Tensor, advantages_G: torch.Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """The clipped ratio of each sequence, the geometric mean over its tokens (arXiv 2507.18071)."""
    ratio_G1 = torch.exp((log_probs_GT - old_GT).mean(-1, keepdim=True))
    return clipped_policy_loss(ratio_G1, advantages_G, clip_low, clip_high)


def cispo(
    log_probs_GT: torch.Tensor, old_GT: torch.Tensor, advantages_G: torch.Tensor, clip_low: float, clip_high: float
) -> PolicyLoss:
    """-min(ratio, 1 + clip_high) * A * log-prob, the weight without gradient (arXiv 2506.13585).

    All tokens keep their gradient. Nothing bounds the weight below, as published; `clip_low` is not used.
    """
    ratio_GT = torch.exp(log_probs_GT - old_GT).detach()
    loss_GT = -ratio_GT.clamp(max=1 + clip_high) * advantages_G.unsqueeze(-1) * log_probs_GT
    return PolicyLoss(loss_GT, ratio_GT, torch.zeros_like(ratio_GT, dtype=torch.bool), ratio_GT > 1 + clip_high)


POLICY_LOSSES: dict[LossName, Callable[..., PolicyLoss]] = {"grpo": grpo, "gspo": gspo, "cispo": cispo}
