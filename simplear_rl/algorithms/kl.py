"""Estimators of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL Divergence", 2020)."""

from typing import Literal

import torch


def kl_estimate(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, estimator: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Per-token KL estimate, same shape as the inputs; exactly 0 where both log-probs are equal.

    With d = reference - policy, and the samples drawn from the policy:

    - k1 = -d. Its value is unbiased and can be negative; its gradient in the loss is 0 in expectation.
    - k2 = d^2 / 2. Its value is biased; its gradient is that of KL(policy || reference).
    - k3 = exp(d) - d - 1, the published choice. Its value is unbiased and never negative; its gradient is that of
      KL(reference || policy).
    """
    difference = reference_log_probs - log_probs
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return torch.expm1(difference) - difference
