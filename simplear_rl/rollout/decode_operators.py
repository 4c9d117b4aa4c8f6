"""What a decoding step computes besides matrix products, in PyTorch; decode_kernels.py has the same for CUDA.

Shapes: K contexts, N key-value heads, G query heads for each of them, D the size of a head, L columns of the cache.
"""

import torch
from torch.nn import functional


def add_norm(x_KH: torch.Tensor, delta_KH: torch.Tensor | None, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """Add `delta_KH` to `x_KH` in place; returns x's RMS norm (arXiv 1910.07467), [K, H]."""
    if delta_KH is not None:
        x_KH += delta_KH
    return functional.rms_norm(x_KH, weight_H.shape, weight_H, eps)


def rotate_and_store(
    qkv_KF: torch.Tensor,
    angles_2LD: torch.Tensor,
    column: torch.Tensor,
    first_K: torch.Tensor,
    keys_KNLD: torch.Tensor,
    values_KNLD: torch.Tensor,
) -> torch.Tensor:
    """Rotate queries and keys (RoPE, arXiv 2104.09864) and write keys and values at `column`.

    Returns the queries [K, N, G, D].

    Args:
        qkv_KF: a row's queries, keys and values, one head behind the other.
        angles_2LD: cosines and sines of each position, D / 2 of them, float32.
        column: int32 [1], of the cache.
        first_K: int32, each row's first column: its position 0.
        keys_KNLD: of one layer's cache.
        values_KNLD: the same.
    """
    contexts, groups, _, size = keys_KNLD.shape
    heads_KFD = qkv_KF.view(contexts, -1, size)
    queries = heads_KFD.shape[1] - 2 * groups
    cos, sin = (table[(column - first_K).long()].unsqueeze(1) for table in angles_2LD)
    low, high = heads_KFD[:, :-groups].float().chunk(2, dim=-1)
    rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(qkv_KF.dtype)
    keys_KNLD.index_copy_(2, column.long(), rotated[:, queries:].unsqueeze(2))
    values_KNLD.index_copy_(2, column.long(), heads_KFD[:, -groups:].unsqueeze(2))
    return rotated[:, :queries].reshape(contexts, groups, -1, size)


def attend(
    queries_KNGD: torch.Tensor,
    keys_KNLD: torch.Tensor,
    values_KNLD: torch.Tensor,
    column: torch.Tensor,
    first_K: torch.Tensor,
) -> torch.Tensor:
    """Attention of each row over its columns, from its first one to `column`; returns [K, N * G * D]."""
    end = int(column) + 1
    seen_K11L = (torch.arange(end, device=first_K.device) >= first_K.unsqueeze(-1))[:, None, None]
    mask = None if bool(seen_K11L.all()) else seen_K11L
    # The query heads of one key-value head are the rows of one small matrix.
    attended = functional.scaled_dot_product_attention(
        queries_KNGD, keys_KNLD[:, :, :end], values_KNLD[:, :, :end], attn_mask=mask
    )
    return attended.reshape(len(attended), -1)


def gate(gate_up_KF: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of the two halves of each row."""
    gate, up = gate_up_KF.chunk(2, dim=-1)
    return functional.silu(gate) * up
