"""How different the images of one prompt are."""

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
    return 1 - float((squared - number) / (number * (number - 1)))
