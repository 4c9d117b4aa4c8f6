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

    KL in the reward is the sum over an image's tokens under the old policy, so that it is fixed for the batch. It is
    taken from the advantage of the rewards alone, less its own mean; with `advantage: mean` the sum is exactly the
    advantage of the paper's R = r - beta * KL.
    """
    advantages_G = group_advantages(rewards_G, config.advantage)
    without_signal = (rewards_G == rewards_G[0]).all()
    ratio_GT = torch.exp(log_probs_GT - old_log_probs_GT)
    kl_GT = None
    if reference_log_probs_GT is not None and config.kl.placement == "reward":
        kl_GT = kl_estimate(old_log_probs_GT, reference_log_probs_GT, config.kl.estimator)
        kl_G = kl_GT.sum(-1)
        # After the division by the rewards' spread: a KL is no reward, and noise where the rewards are equal.
        advantages_G = advantages_G - config.kl.beta * (kl_G - kl_G.mean())
    loss_GT = clipped_policy_loss(ratio_GT, advantages_G, config.clip_low, config.clip_high)
    if reference_log_probs_GT is not None and config.kl.placement == "loss":
        kl_GT = kl_estimate(log_probs_GT, reference_log_probs_GT, config.kl.estimator)
        # The samples are the old policy's: the ratio is their weight under the current one, 1 at the first update.
        loss_GT = loss_GT + config.kl.beta * (ratio_GT.detach() * kl_GT)
    advantages_G1 = advantages_G.unsqueeze(-1)
    low_GT = (ratio_GT < 1 - config.clip_low) & (advantages_G1 < 0)
    high_GT = (ratio_GT > 1 + config.clip_high) & (advantages_G1 > 0)
    loss = loss_GT.mean()
    metrics = {
        "loss": loss,
        **({} if kl_GT is None else {"kl": kl_GT.mean()}),
        "ratio_min": ratio_GT.min(),
        "ratio_max": ratio_GT.max(),
        "clip_low_fraction": low_GT.float().mean(),
        "clip_high_fraction": high_GT.float().mean(),
        "zero_advantage_groups": without_signal.float(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
