"""Drawing codes: what is drawn from, a uniform stream per sample, and the inverse CDF. Any engine can replay it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

BELOW_1 = 1 - 2**-52  # times any float64 is below that number: so there is an end beyond it
BLOCK = 64  # codes at most: the best of 16, 64 and 128 on a CPU, for codebooks of 1,000 to 64,000


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn from the policy's logits, in this order: guidance, temperature, top-k, top-p."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 keeps the whole codebook
    top_p: float = 1.0
    guidance_scale: float = 1.0  # 1 is unguided

    def leaves_codes_out(self, codebook_size: int) -> bool:
        """Whether top-k or top-p does."""
        return 0 < self.top_k < codebook_size or self.top_p < 1


def sampling_log_probs(logits_BC: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Normalised natural log-probs [..., codebook_size] that `sampling` draws from; -inf where it never draws.

    Top-k keeps the k likeliest codes, top-p the fewest likeliest ones whose probabilities reach p. At temperature 0
    they are those of temperature 1: the likeliest code is the same.
    """
    log_probs_BC = torch.log_softmax(_tempered(logits_BC, sampling), dim=-1)
    if not sampling.leaves_codes_out(logits_BC.shape[-1]):
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


def _tempered(logits_BC: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    logits_BC = logits_BC.float()
    return logits_BC if sampling.temperature in (0, 1) else logits_BC / sampling.temperature


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

    `logits_BC` may be overwritten. `uniform_B` is float64 in [0, 1). At temperature 0 it is not used: the likeliest
    code is taken.
    """
    if sampling.temperature == 0:
        log_probs_B, codes_B = sampling_log_probs(logits_BC, sampling).max(-1)
        return codes_B, log_probs_B
    if sampling.leaves_codes_out(logits_BC.shape[-1]):
        return draw_codes(sampling_log_probs(logits_BC, sampling), uniform_B)
    return draw_codes(_tempered(logits_BC, sampling), uniform_B)


def draw_codes(logits_BC: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF draw of one code per row: first a block of codes, then a code of that block.

    So float64, which the edges of a CDF need, is kept to the blocks' sums and the codes of one block. A float32
    cumulative sum over 64,000 codes would shift the edges by about 1e-5.

    Args:
        logits_BC: float32 natural logits [B, codebook_size]. Log-probs are logits as well. They are overwritten: new
            memory for as many numbers would cost a third of the draw.
        uniform_B: float64 [B] in [0, 1).

    Returns:
        Codes int64 [B], and their log-probs float32 [B]. Codes of probability 0 are never drawn.
    """
    rows, codes = logits_BC.shape
    size = _block(codes)
    weights_BC = logits_BC.sub_(logits_BC.amax(-1, keepdim=True)).exp_()
    weights_BKN = weights_BC.view(rows, codes // size, size)
    sums_BK = weights_BKN.sum(-1)
    ends_BK = sums_BK.cumsum(-1, dtype=torch.float64)
    total_B1 = ends_BK[:, -1:]
    point_B1 = uniform_B.to(logits_BC.device).unsqueeze(-1).clamp(max=BELOW_1) * total_B1
    block_B1 = torch.searchsorted(ends_BK, point_B1, right=True)
    sum_B1 = sums_BK.gather(-1, block_B1)
    start_B1 = ends_BK.gather(-1, block_B1).sub_(sum_B1)
    codes_BN = weights_BKN.gather(1, block_B1.unsqueeze(-1).expand(-1, -1, size)).squeeze(1)
    ends_BN = codes_BN.cumsum(-1, dtype=torch.float64)
    share_B1 = point_B1.sub_(start_B1).div_(sum_B1).clamp_(0, BELOW_1)  # of the block; rounding may put it outside
    within_B1 = torch.searchsorted(ends_BN, share_B1 * ends_BN[:, -1:], right=True)
    log_probs_B1 = (codes_BN.gather(-1, within_B1) / total_B1).log_().float()
    return torch.add(within_B1, block_B1, alpha=size).squeeze(-1), log_probs_B1.squeeze(-1)


@cache
def _block(codebook_size: int) -> int:
    """Codes of a block: the most that divide the codebook evenly. Of a prime number of codes each is its own block."""
    return max(size for size in range(1, BLOCK + 1) if codebook_size % size == 0)
