"""Rollout correction: weights for samples that an engine drew with other log-probs than the learner has.

Engine and learner compute the same policy in different ways, in bfloat16 visibly so. Their samples' importance weights
exp(learner - behaviour) make the expected gradient that of the learner's own samples; a limit keeps the variance small
(truncated importance sampling, Ionides 2008; masking as in IcePop and TRL).
"""

import torch

from simplear_rl.config.learner import CorrectionConfig

# Nats. In float32 engine and learner are closer than this, and the engine's last digits depend on the batch that a
# sample shared. Taken for equal, they reach no weight of the policy: a step is the same whichever actor drew for it.
ROUNDING = 1e-4


def correction_weights(
    old_log_probs_GT: torch.Tensor, behaviour_log_probs_GT: torch.Tensor, config: CorrectionConfig
) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
    """Weights of a group's tokens [G, T] or of its images [G, 1], detached, and what to log. None: no correction.

    An image's weight is the product of its tokens'. From mean and mean square of weights comes the effective sample
    size, see learning/metrics.py.
    """
    if config.kind == "none":
        return None, {}
    difference = (old_log_probs_GT - behaviour_log_probs_GT).detach()
    difference = difference.masked_fill(difference.abs() <= ROUNDING, 0.0)
    if config.level == "sequence":
        difference = difference.sum(-1, keepdim=True)
    weights = torch.exp(difference)
    above = weights > config.limit
    weights = weights.masked_fill(above, config.limit if config.kind == "truncate" else 0.0)
    return weights, {
        "correction_mean": weights.mean(),
        "correction_square": weights.square().mean(),
        "correction_cut": above.float().mean(),
    }
