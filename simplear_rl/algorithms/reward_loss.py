"""The loss of a reward model on human labels (Lee et al., arXiv 2302.12192, equations 1 and 2)."""

import torch
from torch.nn.functional import cross_entropy, mse_loss


def reward_loss(rewards_BN: torch.Tensor, labels_B: torch.Tensor, classification: float) -> torch.Tensor:
    """Squared error of the rewards, plus `classification` times the cross-entropy of the own prompt among all.

    Args:
        rewards_BN: of B images for N prompts each; the first is the image's own, the others are wrong ones.
        labels_B: of image and own prompt, from 0 (bad) to 1 (good). Images below 1 have no part in the classification.
        classification: the paper's lambda.
    """
    loss, good_GN = mse_loss(rewards_BN[:, 0], labels_B), rewards_BN[labels_B == 1]
    if len(good_GN):
        loss = loss + classification * cross_entropy(good_GN, torch.zeros_like(good_GN[:, 0], dtype=torch.long))
    return loss
