"""decode_operators.py in Triton for one or two contexts: matrix-vector products, each with all that stands around it.

With so few contexts a step is a chain of short kernels that read weights, and starting them takes longer than reading.
So a layer has six instead of nine, and where the GPU can, each kernel fetches its weights before the one in front of it
is done (programmatic dependent launch, CUDA programming guide). docs/timings.md has what that brings.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from simplear_rl.rollout.decode_kernels import Kernels

WARPS = 4  # of a program
PRODUCTS = 64  # numbers that a thread multiplies at a time


@triton.jit
def _product(
    x, delta, norm, weight, bias, added, out, N, eps,
    ROWS: tl.constexpr, R: tl.constexpr, H: tl.constexpr, BN: tl.constexpr, BH: tl.constexpr, NORM: tl.constexpr,
    ADD: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    n, h, r = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BH), tl.arange(0, R)
    kind = x.dtype.element_ty
    at = n[:, None].to(tl.int64) * H + h[None, :]
    inside = (n < N)[:, None] & (h < H)[None, :]
    # Weights do not depend on the kernel before this one: they are fetched while it runs.
    part = tl.load(weight + at, mask=inside, other=0).to(tl.float32)
    if GATED:
        part_2 = tl.load(weight + N * H + at, mask=inside, other=0).to(tl.float32)
    if NORM:
        scale = tl.load(norm + h, mask=h < H, other=0)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    rows = r[:, None] * H + h[None, :]
    there = (r < ROWS)[:, None] & (h < H)[None, :]
    value = tl.load(x + rows, mask=there, other=0).to(tl.float32)
    if NORM:
        if ADD:
            value += tl.load(delta + rows, mask=there, other=0).to(tl.float32)
            value = value.to(kind).to(tl.float32)
            if tl.program_id(0) == 0:
                tl.store(added + rows, value.to(kind), mask=there)
        value = value / tl.sqrt(tl.sum(value * value, 1) / H + eps)[:, None]
        value = (value.to(kind) * scale[None, :]).to(tl.float32)
    products = part[None, :, :] * value[:, None, :]
    for start in tl.static_range(BH, H, BH):
        inside = (n < N)[:, None] & (start + h < H)[None, :]
        there = (r < ROWS)[:, None] & (start + h < H)[None, :]
        part = tl.load(weight + at + start, mask=inside, other=0).to(tl.float32)
        value = tl.load(x + rows + start, mask=there, other=0).to(tl.float32)
        products += part[None, :, :] * value[:, None, :]
    result = tl.sum(products, 2)
    if BIAS:
        result += tl.load(bias + n, mask=n < N, other=0).to(tl.float32)[None, :]
    if GATED:
        gate = result.to(kind).to(tl.float32)
        up = tl.sum(part_2[None, :, :] * value[:, None, :], 2)
        result = ((gate * tl.sigmoid(gate)).to(kind) * up.to(kind)).to(tl.float32)
    wanted = (r < ROWS)[:, None] & (n < N)[None, :]
    tl.store(out + r[:, None] * N + n[None, :], result.to(out.dtype.element_ty), mask=wanted)


class FewKernels(Kernels):
    """The products as well."""

    # Hopper has launches of that kind, and what came after it.
    ahead = torch.cuda.is_available() and not torch.version.hip and torch.cuda.get_device_capability() >= (9, 0)

    def _run(
        self,
        x_KH: torch.Tensor,
        weight_FH: torch.Tensor,
        *,
        bias_F: torch.Tensor | None = None,
        norm: tuple[torch.Tensor | None, torch.Tensor, float] | None = None,
        gated: bool = False,
        out: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of x and what `norm` has to add to it, and their product, [K, F] or, gated, [K, F / 2]."""
        rows, size = x_KH.shape
        width = len(weight_FH) // (2 if gated else 1)
        delta_KH, norm_H, eps = norm or (None, x_KH, 0.0)
        added = x_KH if delta_KH is None else torch.empty_like(x_KH)
        result = torch.empty(rows, width, dtype=out or x_KH.dtype, device=x_KH.device)
        # A norm needs a row as a whole.
        r, block = triton.next_power_of_2(rows), triton.next_power_of_2(size) if norm or size < 1024 else 1024
        height = max(1, PRODUCTS * 32 * WARPS // (r * block * (2 if gated else 1)))
        options: dict[str, Any] = {"launch_pdl": True} if self.ahead else {}
        _product[(triton.cdiv(width, height),)](
            x_KH, x_KH if delta_KH is None else delta_KH, norm_H, weight_FH, x_KH if bias_F is None else bias_F, added,
            result, width, eps, ROWS=rows, R=r, H=size, BN=height, BH=block, NORM=norm is not None,
            ADD=delta_KH is not None, BIAS=bias_F is not None, GATED=gated, AHEAD=self.ahead, num_warps=WARPS,
            **options,
        )  # fmt: skip
        return added, result

    def norm_linear(
        self,
        x_KH: torch.Tensor,
        delta_KH: torch.Tensor | None,
        norm_H: torch.Tensor,
        eps: float,
        weight_FH: torch.Tensor,
        bias_F: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Operators."""
        return self._run(x_KH, weight_FH, bias_F=bias_F, norm=(delta_KH, norm_H, eps))

    def linear(self, x_KH: torch.Tensor, weight_FH: torch.Tensor) -> torch.Tensor:
        """See Operators."""
        return self._run(x_KH, weight_FH)[1]

    def norm_gated(
        self, x_KH: torch.Tensor, delta_KH: torch.Tensor, norm_H: torch.Tensor, eps: float, weight_FH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Operators."""
        return self._run(x_KH, weight_FH, norm=(delta_KH, norm_H, eps), gated=True)

    def norm_logits(
        self, x_KH: torch.Tensor, delta_KH: torch.Tensor | None, norm_H: torch.Tensor, eps: float, head_CH: torch.Tensor
    ) -> torch.Tensor:
        """See Operators."""
        return self._run(x_KH, head_CH, norm=(delta_KH, norm_H, eps), out=torch.float32)[1]
