"""The loss of one prompt group: rewards -> advantages -> policy loss + KL."""

import torch

from simplear_rl.algorithms.advantages import group_advantages
from simplear_rl.algorithms.kl import kl_estimate
from simplear_rl.algorithms.policy_losses import POLICY_LOSSES
from simplear_rl.config.learner import AlgorithmConfig


def advantages_with_kl(
    rewards_G: torch.Tensor,
    old_log_probs_GT: torch.Tensor | None,
    reference_log_probs_GT: torch.Tensor | None,
    config: AlgorithmConfig,
) -> torch.Tensor:
    """Advantages of one group [G], less KL in the reward if `config` places it there; else no log-probs are needed.

    That KL is the sum over an image's tokens under the old policy, so it is fixed for the batch. It is taken from the
    advantage of the rewards alone, less its own mean: a KL is no reward, and must not become noise where the rewards
    are equal. With `advantage: mean` the result is exactly the advantage of the paper's R = r - beta * KL.
    """
    advantages_G = group_advantages(rewards_G, config.advantage)
    if reference_log_probs_GT is None or config.kl.placement == "loss":
        return advantages_G
    assert old_log_probs_GT is not None
    kl_G = kl_estimate(old_log_probs_GT, reference_log_probs_GT, config.kl.estimator).sum(-1)
    return advantages_G - config.kl.beta * (kl_G - kl_G.mean())


def grpo_loss(
    log_probs_GT: torch.Tensor,
    old_log_probs_GT: torch.Tensor,
    reference_log_probs_GT: torch.Tensor | None,
    advantages_G: torch.Tensor,
    config: AlgorithmConfig,
    weights: torch.Tensor | None = None,
    entropy_GT: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of one group, or of some of its samples, averaged over tokens, and what to log (scalars, detached).

    Args:
        log_probs_GT: of the policy being updated; the gradient flows through these alone.
        old_log_probs_GT: of the policy as it was when this batch's updates began; `kl` is logged of it.
        reference_log_probs_GT: of the frozen reference; None where `config.kl.beta` is 0: then no `kl` is logged.
        advantages_G: see `advantages_with_kl`.
        config: the policy loss, its bounds, KL.
        weights: of the tokens [G, T] or images [G, 1], see `correction_weights`; the KL has none.
        entropy_GT: of the policy being updated; needed where `config.entropy_bonus` is above 0.
    """
    policy = POLICY_LOSSES[config.loss](log_probs_GT, old_log_probs_GT, advantages_G, config.clip_low, config.clip_high)
    loss_GT = policy.loss if weights is None else policy.loss * weights
    kl = {}
    if reference_log_probs_GT is not None:
        kl["kl"] = kl_estimate(old_log_probs_GT, reference_log_probs_GT, config.kl.estimator).mean()
        if config.kl.placement == "loss":
            kl_GT = kl_estimate(log_probs_GT, reference_log_probs_GT, config.kl.estimator)
            # The samples are the old policy's: the ratio is their weight under the current one, 1 at the first update.
            ratio_GT = torch.exp(log_probs_GT.detach() - old_log_probs_GT)
            loss_GT = loss_GT + config.kl.beta * (ratio_GT * kl_GT)
    loss = loss_GT.mean()
    if config.entropy_bonus:
        assert entropy_GT is not None
        loss = loss - config.entropy_bonus * entropy_GT.mean()
    metrics = {
        "loss": loss,
        **kl,
        "ratio_min": policy.ratio.min(),
        "ratio_max": policy.ratio.max(),
        "clip_low_fraction": policy.clipped_low.float().mean(),
        "clip_high_fraction": policy.clipped_high.float().mean(),
    }
    return loss, {name: value.detach() for name, value in metrics.items()}
