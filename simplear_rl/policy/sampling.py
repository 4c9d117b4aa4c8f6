"""Drawing codes: what is drawn from, a uniform stream per sample, and the inverse CDF. Any engine can replay it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn from the policy's logits, in this order: guidance, temperature, top-k, top-p."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps the whole codebook
    top_p: float = 1.0
    guidance_scale: float = 1.0  # 1 is unguided


def sampling_log_probs(logits_BC: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Normalised natural log-probs [..., codebook_size] that `sampling` draws from; -inf where it never draws.

    Top-k keeps the k likeliest codes, top-p the fewest likeliest ones whose probabilities reach p. At temperature 0
    they are those of temperature 1: the likeliest code is the same.
    """
    tempered_BC = logits_BC.float()
    if sampling.temperature not in (0, 1):
        tempered_BC = tempered_BC / sampling.temperature
    log_probs_BC = torch.log_softmax(tempered_BC, dim=-1)
    if not 0 < sampling.top_k < logits_BC.shape[-1] and sampling.top_p >= 1:
        return log_probs_BC
    ordered_BC, codes_BC = log_probs_BC.sort(dim=-1, descending=True, stable=True)
    dropped_BC = torch.zeros_like(ordered_BC, dtype=torch.bool)
    if sampling.top_k:
        dropped_BC[..., sampling.top_k :] = True
    if sampling.top_p < 1:
        # Float64: a float32 cumulative sum over 64,000 codes is off by more than the last codes have.
        kept_BC = torch.softmax(ordered_BC.double().masked_fill(dropped_BC, -torch.inf), dim=-1)
        dropped_BC |= kept_BC.cumsum(-1) - kept_BC >= sampling.top_p
    dropped_BC = torch.zeros_like(dropped_BC).scatter_(-1, codes_BC, dropped_BC)
    return torch.log_softmax(log_probs_BC.masked_fill(dropped_BC, -torch.inf), dim=-1)


def entropy(log_probs_BC: torch.Tensor) -> torch.Tensor:
    """Entropy [...] in nats of normalised log-probs [..., codebook_size], all of them finite: no top-k, no top-p."""
    return -(log_probs_BC.exp() * log_probs_BC).sum(-1)


def uniform_stream(seed: Sequence[int], length: int) -> np.ndarray:
    """`length` uniforms in [0, 1) that depend on `seed` alone.

    `seed` is (run seed, step, prompt index, sample index). Position t of an image always consumes number t, so a
    sample is the same whichever actor draws it, in whichever batch, and after a restart.
    Philox is a counter-based generator (Salmon et al. 2011).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(length)


def draw_each(
    logits_BC: torch.Tensor, uniform_B: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """One code per row, int64 [B], and its log-prob, float32 [B], under the distribution that it is drawn from.

    `uniform_B` is float64 in [0, 1). At temperature 0 it is not used: the likeliest code is taken.
    """
    log_probs_BC = sampling_log_probs(logits_BC, sampling)
    codes_B = draw_codes(log_probs_BC, uniform_B) if sampling.temperature else log_probs_BC.argmax(-1)
    return codes_B, log_probs_BC.gather(-1, codes_B.unsqueeze(-1)).squeeze(-1)


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
