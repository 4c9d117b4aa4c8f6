"""The GRPO loss of one prompt group: rewards -> advantages -> clipped policy loss + KL."""

import torch

from simplear_rl.algorithms.advantages import group_advantages
from simplear_rl.algorithms.kl import kl_estimate
from simplear_rl.config.learner import AlgorithmConfig


def clipped_policy_loss(
    ratio_GT: torch.Tensor, advantages_G: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """Per-token loss [G, T]: -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) (PPO, arXiv 1707.06347).

    Separate bounds as in DAPO (arXiv 2503.14476).
    """
    advantages_G1 = advantages_G.unsqueeze(-1)
    clipped_GT = ratio_GT.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio_GT * advantages_G1, clipped_GT * advantages_G1)


def grpo_loss(
    log_probs_GT: torch.Tensor,
    old_log_probs_GT: torch.Tensor,
    reference_log_probs_GT: torch.Tensor | None,
    rewards_G: torch.Tensor,
    config: AlgorithmConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one group, averaged over its tokens, and what to log (scalars, detached).

    Args:
        log_probs_GT: of the policy being updated; the gradient flows through these alone.
        old_log_probs_GT: of the policy as it was when this batch's updates began.
        reference_log_probs_GT: of the frozen reference; None where `config.kl.beta` is 0: then no `kl` is logged.
        rewards_G: one reward per sample.
        config: clipping, form of the advantage, KL.
    """
    kl_GT = None
    if reference_log_probs_GT is not None:
        kl_GT = kl_estimate(log_probs_GT, reference_log_probs_GT, config.kl.estimator)
    if kl_GT is not None and config.kl.placement == "reward":
        rewards_G = rewards_G - config.kl.beta * kl_GT.detach().mean(-1)
    advantages_G = group_advantages(rewards_G, config.advantage)
    ratio_GT = torch.exp(log_probs_GT - old_log_probs_GT)
    loss_GT = clipped_policy_loss(ratio_GT, advantages_G, config.clip_low, config.clip_high)
    if kl_GT is not None and config.kl.placement == "loss":
        loss_GT = loss_GT + config.kl.beta * kl_GT
    clipped_GT = (ratio_GT < 1 - config.clip_low) | (ratio_GT > 1 + config.clip_high)
    loss = loss_GT.mean()
    metrics = {
        "loss": loss,
        **({} if kl_GT is None else {"kl": kl_GT.mean()}),
        "ratio_min": ratio_GT.min(),
        "ratio_max": ratio_GT.max(),
        "clip_fraction": clipped_GT.float().mean(),
        "zero_advantage_groups": (advantages_G == 0).all().float(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
