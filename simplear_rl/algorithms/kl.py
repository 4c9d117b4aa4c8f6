"""Estimators of KL(policy || reference) from sampled tokens (Schulman, "Approximating KL Divergence", 2020).

What they regularise depends on where they stand (arXiv 2510.01555, 2512.21852). In the loss an estimate is
differentiated itself; in the reward it is a number, and the policy gradient makes samples of high cost less likely.

| | gradient in the loss | gradient in the reward |
| --- | --- | --- |
| k1 | 0 in expectation: regularises nothing | that of KL(policy || reference) |
| k2 | that of KL(policy || reference) | of neither KL |
| k3 | that of KL(reference || policy) | that of KL(policy || reference) - KL(reference || policy) |

In the loss these are the KLs of each token given the ones before it, as they were drawn: what a token does to the KL of
later ones has no gradient. k1 in the reward has that of the whole image's KL.

The configuration refuses k1 in the loss, and k2 and k3 in the reward.
"""

from typing import Literal

import torch


def kl_estimate(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, estimator: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Per-token KL estimate, same shape as the inputs; exactly 0 where both log-probs are equal.

    With d = reference - policy, and the samples drawn from the policy:

    - k1 = -d. Its value is unbiased and can be negative.
    - k2 = d^2 / 2. Its value is biased.
    - k3 = exp(d) - d - 1, the published choice. Its value is unbiased and never negative.
    """
    difference = reference_log_probs - log_probs
    match estimator:
        case "k1":
            return -difference
        case "k2":
            return difference.square() / 2
        case "k3":
            return torch.expm1(difference) - difference
