"""How different images are: those of one prompt, and all of a set."""

import torch
from torch.nn.functional import normalize


def diversity(features_GD: torch.Tensor) -> float:
    """Mean of 1 - cosine over all pairs of G images of one prompt, from 0 (all look alike) to about 1 (unrelated).

    Args:
        features_GD: image features of any length, [G, D].

    Raises:
        ValueError: one image has no pair.
    """
    number = len(features_GD)
    if number < 2:
        raise ValueError(f"expected features of at least two images, found {number}")
    # The square of the sum has every cosine twice, and a 1 of every image with itself.
    squared = normalize(features_GD.double(), dim=-1).sum(0).square().sum()
    return max(0.0, 1 - float((squared - number) / (number * (number - 1))))  # rounding goes below


def vendi_score(features_ND: torch.Tensor) -> float:
    """How many different images there are among N, from 1 (all look alike) to N (unrelated).

    The Vendi score (arXiv 2210.02410) with the cosine as kernel: exp of the entropy of the eigenvalues of the images'
    similarities, divided by N.

    Args:
        features_ND: image features of any length, [N, D].
    """
    unit_ND = normalize(features_ND.double(), dim=-1)
    # The smaller of both products: their eigenvalues are the same, but for zeros.
    product = unit_ND @ unit_ND.T if len(unit_ND) <= unit_ND.shape[1] else unit_ND.T @ unit_ND
    eigenvalues = torch.linalg.eigvalsh(product / len(unit_ND)).clamp(min=0)
    return float(torch.special.entr(eigenvalues).sum().exp())
