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


def advantages_with_kl(
    rewards_G: torch.Tensor,
    old_log_probs_GT: torch.Tensor,
    reference_log_probs_GT: torch.Tensor | None,
    config: AlgorithmConfig,
) -> torch.Tensor:
    """Advantages of one group [G], less KL in the reward if `config` places it there.

    That KL is the sum over an image's tokens under the old policy, so it is fixed for the batch. It is taken from the
    advantage of the rewards alone, less its own mean: a KL is no reward, and must not become noise where the rewards
    are equal. With `advantage: mean` the result is exactly the advantage of the paper's R = r - beta * KL.
    """
    advantages_G = group_advantages(rewards_G, config.advantage)
    if reference_log_probs_GT is None or config.kl.placement == "loss":
        return advantages_G
    kl_G = kl_estimate(old_log_probs_GT, reference_log_probs_GT, config.kl.estimator).sum(-1)
    return advantages_G - config.kl.beta * (kl_G - kl_G.mean())


def grpo_loss(
    log_probs_GT: torch.Tensor,
    old_log_probs_GT: torch.Tensor,
    reference_log_probs_GT: torch.Tensor | None,
    advantages_G: torch.Tensor,
    config: AlgorithmConfig,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one group, or of some of its samples, averaged over tokens, and what to log (scalars, detached).

    Args:
        log_probs_GT: of the policy being updated; the gradient flows through these alone.
        old_log_probs_GT: of the policy as it was when this batch's updates began; `kl` is logged of it.
        reference_log_probs_GT: of the frozen reference; None where `config.kl.beta` is 0: then no `kl` is logged.
        advantages_G: see `advantages_with_kl`.
        config: clipping, KL.
        weights: of the tokens [G, T] or images [G, 1], see `correction_weights`; the KL has none.
    """
    ratio_GT = torch.exp(log_probs_GT - old_log_probs_GT)
    loss_GT = clipped_policy_loss(ratio_GT, advantages_G, config.clip_low, config.clip_high)
    if weights is not None:
        loss_GT = loss_GT * weights
    kl = {}
    if reference_log_probs_GT is not None:
        kl["kl"] = kl_estimate(old_log_probs_GT, reference_log_probs_GT, config.kl.estimator).mean()
        if config.kl.placement == "loss":
            kl_GT = kl_estimate(log_probs_GT, reference_log_probs_GT, config.kl.estimator)
            # The samples are the old policy's: the ratio is their weight under the current one, 1 at the first update.
            loss_GT = loss_GT + config.kl.beta * (ratio_GT.detach() * kl_GT)
    advantages_G1 = advantages_G.unsqueeze(-1)
    low_GT = (ratio_GT < 1 - config.clip_low) & (advantages_G1 < 0)
    high_GT = (ratio_GT > 1 + config.clip_high) & (advantages_G1 > 0)
    loss = loss_GT.mean()
    metrics = {
        "loss": loss,
        **kl,
        "ratio_min": ratio_GT.min(),
        "ratio_max": ratio_GT.max(),
        "clip_low_fraction": low_GT.float().mean(),
        "clip_high_fraction": high_GT.float().mean(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
