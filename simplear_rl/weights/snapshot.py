"""Policy weights on their way from the learner to the rollout engines: buckets, checksums."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

BUCKET_BYTES = 2**28
BLOCK = 2**16  # words of 32 bits that go into one sum


@dataclass(frozen=True)
class Weights:
    """All tensors of a policy under their Transformers names (a tied head is not repeated)."""

    version: int  # the learner's step
    tensors: dict[str, torch.Tensor]
    checksum: dict[str, str]


def checksum(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """What identifies each tensor: its shape, its type, and a digest of its bits.

    The bits are read on the tensor's device, as 32-bit words in blocks; a block becomes the sum of its words times
    fixed random odd 64-bit factors, modulo 2^64 (compare multilinear hashing: Lemire and Kaser, arXiv 1202.4961). That
    is exact and does not depend on the order of summation, so that devices agree. Only the sums travel to the host;
    the digest is SHA-256 over them. One changed word never goes unnoticed (odd factors are invertible); other
    accidental damage, such as exchanged rows, does with a probability of at most 2^-32. Forgery is not guarded against.
    """
    return {
        name: f"{tuple(tensor.shape)} {tensor.dtype} {hashlib.sha256(_sums(tensor.detach())).hexdigest()}"
        for name, tensor in named_tensors
    }


def _sums(tensor: torch.Tensor) -> bytes:
    octets = tensor.contiguous().flatten().view(torch.uint8)
    if rest := len(octets) % 4:
        octets = torch.nn.functional.pad(octets, (0, 4 - rest))
    factors = _factors(tensor.device)
    blocks = octets.view(torch.int32).split(BLOCK)
    return torch.stack([(words * factors[: len(words)]).sum() for words in blocks]).cpu().numpy().tobytes()


@cache
def _factors(device: torch.device) -> torch.Tensor:
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63, BLOCK, dtype=np.int64)
    return torch.from_numpy(drawn | 1).to(device)


def in_buckets(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, in lists whose sizes (bytes) sum to at most `limit`; what is larger by itself is alone."""
    bucket: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if bucket and filled + size > limit:
            yield bucket
            bucket, filled = [], 0
        bucket.append(name)
        filled += size
    yield bucket
