"""Classifier-free guidance (arXiv 2207.12598) over the visual codebook."""

import torch


def guided_logits(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """U + scale * (c - u), of any shape [..., codebook_size]; scale 1 is unguided, 0 the unconditional policy.

    Raw or log-softmaxed logits give the same distribution after the softmax.
    """
    return unconditional + scale * (conditional - unconditional)
