"""What a decoding step computes, in PyTorch; decode_kernels.py has the same for CUDA, decode_few.py for few contexts.

Shapes: K contexts, H hidden size, N key-value heads, G query heads for each of them, D the size of a head, L columns
of the cache. An operator that begins with a norm first adds what the one before it left, `delta_KH`, to `x_KH`, in
place or not: the sum is what it returns first.
"""

import torch
from torch.nn import functional

from simplear_rl.policy.visual_head import visual_logits


class Operators:
    """In PyTorch, on any device. A subclass computes some of it, or several at once, in another way."""

    def add_norm(
        self, x_KH: torch.Tensor, delta_KH: torch.Tensor | None, weight_H: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add `delta_KH` to `x_KH` in place; returns x's RMS norm (arXiv 1910.07467), [K, H]."""
        if delta_KH is not None:
            x_KH += delta_KH
        return functional.rms_norm(x_KH, weight_H.shape, weight_H, eps)

    def gate(self, gate_up_KF: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of the two halves of each row."""
        gate, up = gate_up_KF.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def norm_linear(
        self,
        x_KH: torch.Tensor,
        delta_KH: torch.Tensor | None,
        norm_H: torch.Tensor,
        eps: float,
        weight_FH: torch.Tensor,
        bias_F: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, and a projection of its norm, [K, F]."""
        return x_KH, functional.linear(self.add_norm(x_KH, delta_KH, norm_H, eps), weight_FH, bias_F)

    def linear(self, x_KH: torch.Tensor, weight_FH: torch.Tensor) -> torch.Tensor:
        """Their product, [K, F]."""
        return functional.linear(x_KH, weight_FH)

    def norm_gated(
        self, x_KH: torch.Tensor, delta_KH: torch.Tensor, norm_H: torch.Tensor, eps: float, weight_FH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum, and silu(gate) * up, [K, F / 2], of its norm's projection to gates and ups."""
        return x_KH, self.gate(functional.linear(self.add_norm(x_KH, delta_KH, norm_H, eps), weight_FH))

    def norm_logits(
        self, x_KH: torch.Tensor, delta_KH: torch.Tensor | None, norm_H: torch.Tensor, eps: float, head_CH: torch.Tensor
    ) -> torch.Tensor:
        """Logits of the sum's norm, float32 [K, codebook_size]."""
        return visual_logits(self.add_norm(x_KH, delta_KH, norm_H, eps), head_CH)

    def attend(
        self,
        qkv_KF: torch.Tensor,
        angles_2LD: torch.Tensor,
        column: torch.Tensor,
        first_K: torch.Tensor,
        keys_KNLD: torch.Tensor,
        values_KNLD: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of each row over its columns, from its first one to `column`; returns [K, N * G * D].

        Rotates queries and keys (RoPE, arXiv 2104.09864) and writes the new keys and values at `column` first.

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
        queries_KNGD = rotated[:, :queries].reshape(contexts, groups, -1, size)
        end = int(column) + 1
        seen_K11L = (torch.arange(end, device=first_K.device) >= first_K.unsqueeze(-1))[:, None, None]
        mask = None if bool(seen_K11L.all()) else seen_K11L
        # The query heads of one key-value head are the rows of one small matrix.
        attended = functional.scaled_dot_product_attention(
            queries_KNGD, keys_KNLD[:, :, :end], values_KNLD[:, :, :end], attn_mask=mask
        )
        return attended.reshape(len(attended), -1)
