"""Classifier-free guidance (arXiv 2207.12598) over the visual codebook."""

import torch


def guided_logits(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Guided logits `u + scale * (c - u)`, of any shape [..., codebook_size]; `out` may be one of the two.

    Scale 1 is unguided, scale 0 the unconditional policy.

    Raw or log-softmaxed logits give the same distribution after the softmax.
    """
    return torch.lerp(unconditional, conditional, scale, out=out)  # one pass, and exact at scales 0 and 1
