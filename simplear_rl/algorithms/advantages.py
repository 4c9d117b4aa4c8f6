"""Group-relative advantages (GRPO, arXiv 2402.03300)."""

from typing import Literal

import torch


def group_advantages(rewards_G: torch.Tensor, normalize: Literal["std", "mean"]) -> torch.Tensor:
    """Advantage of each of the G samples of one prompt, [G].

    "std": (r - mean) / (std + 1e-4), the published form (std with Bessel's correction); "mean": r - mean (Dr. GRPO,
    arXiv 2503.20783, whose gradient does not grow as the group's rewards come together).
    A group of equal rewards has advantage 0 and so carries no gradient.
    """
    centred_G = rewards_G - rewards_G.mean()
    if no_signal(rewards_G):
        return torch.zeros_like(rewards_G)  # the mean's rounding error must not pose as a signal
    return centred_G / (rewards_G.std() + 1e-4) if normalize == "std" else centred_G


def no_signal(rewards_G: torch.Tensor) -> bool:
    """Whether the rewards of a group are all equal."""
    return bool((rewards_G == rewards_G[0]).all())
