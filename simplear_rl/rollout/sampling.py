"""Drawing codes: a uniform stream per sample, and the inverse CDF. Any engine can replay it."""

from collections.abc import Sequence

import numpy as np
import torch


def uniform_stream(seed: Sequence[int], length: int) -> np.ndarray:
    """`length` uniforms in [0, 1) that depend on `seed` alone.

    `seed` is (run seed, step, prompt index, sample index). Position t of an image always consumes number t, so a
    sample is the same whichever actor draws it, in whichever batch, and after a restart.
    Philox is a counter-based generator (Salmon et al. 2011).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(length)


def draw_codes(log_probs_BC: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw of one code per row.

    Args:
        log_probs_BC: normalised natural log-probs [B, codebook_size].
        uniform_B: float64 [B] in [0, 1).

    Returns:
        int64 [B]. Codes of probability 0 are never drawn.
    """
    # Float64: a float32 cumulative sum over 64,000 codes would shift the edges by about 1e-5.
    cdf_BC = log_probs_BC.double().exp().cumsum(-1)
    target_B1 = (uniform_B.to(cdf_BC.device) * cdf_BC[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cdf_BC, target_B1, right=True).squeeze(-1)
