"""What a decoding step computes, in PyTorch; decode_kernels.py has the same for CUDA, decode_few.py for few contexts.

Shapes: K contexts, H hidden size, N key-value heads, G query heads for each of them, D the size of a head, L columns
of the cache. An operator that begins with a norm first adds what the one before it left, `delta_KH`, to `x_KH`, in
place or not: the sum is what it returns first.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional

from simplear_rl.policy.visual_head import visual_logits


@dataclass
class Place:
    """Where a step's tokens stand, which is the same for the attention of all layers.

    Args:
        angles: cosines and sines of each position, float32 [2, L, D / 2].
        column: of the cache, int32 [1].
        first: each row's first column, its position 0, int32 [K].
    """

    angles: torch.Tensor
    column: torch.Tensor
    first: torch.Tensor

    @cached_property
    def turn(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of each row's position, [K, 1, D / 2] each."""
        cos_K1D, sin_K1D = self.angles[:, (self.column - self.first).long()].unsqueeze(2)
        return cos_K1D, sin_K1D

    @cached_property
    def end(self) -> int:
        """The columns that are written after this step."""
        return int(self.column) + 1

    @cached_property
    def seen(self) -> torch.Tensor | None:
        """Columns that a row attends to, bool [K, 1, 1, end]; None where it is all of them."""
        seen_KL = torch.arange(self.end, device=self.first.device) >= self.first.unsqueeze(-1)
        return None if bool(seen_KL.all()) else seen_KL[:, None, None]


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
        """silu(gate) * up of the two halves of each row; may overwrite them."""
        gate, up = gate_up_KF.chunk(2, dim=-1)
        return functional.silu(gate, inplace=True).mul_(up)

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
        self, qkv_KF: torch.Tensor, place: Place, keys_KNLD: torch.Tensor, values_KNLD: torch.Tensor
    ) -> torch.Tensor:
        """Attention of each row over its columns, from its first one to the step's; returns [K, N * G * D].

        Rotates queries and keys (RoPE, arXiv 2104.09864) and writes the new keys and values into the cache first.

        Args:
            qkv_KF: a row's queries, keys and values, one head behind the other.
            place: the step's.
            keys_KNLD: of one layer's cache.
            values_KNLD: the same.
        """
        contexts, groups, _, size = keys_KNLD.shape
        heads_KFD = qkv_KF.view(contexts, -1, size)
        queries = heads_KFD.shape[1] - 2 * groups
        low, high = heads_KFD[:, :-groups].float().chunk(2, dim=-1)
        cos, sin = place.turn
        turned = (low * cos).addcmul_(high, sin, value=-1), (high * cos).addcmul_(low, sin)
        rotated = torch.cat(turned, dim=-1).to(qkv_KF.dtype)
        keys_KNLD[:, :, place.end - 1] = rotated[:, queries:]
        values_KNLD[:, :, place.end - 1] = heads_KFD[:, -groups:]
        # The query heads of one key-value head are the rows of one small matrix.
        attended = functional.scaled_dot_product_attention(
            rotated[:, :queries].reshape(contexts, groups, -1, size),
            keys_KNLD[:, :, : place.end],
            values_KNLD[:, :, : place.end],
            attn_mask=place.seen,
        )
        return attended.reshape(len(attended), -1)
