"""decode_operators.py in Triton: nothing waits for the host, and one CUDA graph serves every length of the cache.

The kernels read the column from the device. Attention splits a row's columns among programs and combines what they
found (Flash-Decoding, https://pytorch.org/blog/flash-decoding/), so that a few contexts fill a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from simplear_rl.rollout.decode_operators import Operators, Place

PROGRAMS = 264  # two for each multiprocessor of an H100
COLUMNS = 64  # of the cache that a program reads at a time
LOWEST = tl.constexpr(-1e30)


@triton.jit
def _add_norm(x, delta, weight, normed, eps, H: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    value = tl.load(x + row * H + i, mask=i < H, other=0).to(tl.float32)
    if ADD:
        value += tl.load(delta + row * H + i, mask=i < H, other=0).to(tl.float32)
        value = value.to(x.dtype.element_ty).to(tl.float32)
        tl.store(x + row * H + i, value, mask=i < H)
    scaled = value / tl.sqrt(tl.sum(value * value) / H + eps)
    tl.store(normed + row * H + i, scaled.to(x.dtype.element_ty) * tl.load(weight + i, mask=i < H, other=0), mask=i < H)


@triton.jit
def _attend(
    qkv, cosines, sines, keys, values, column, first, parts, maxima, sums, L, scale,
    N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    row, group = head // N, head % N
    g, half, d, c = tl.arange(0, ROWS), tl.arange(0, D // 2), tl.arange(0, D), tl.arange(0, C)
    if AHEAD:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    here, begin = tl.load(column), tl.load(first + row)
    share = (here - begin + S) // S
    low = begin + split * share
    high = tl.minimum(low + share, here + 1)
    angle = (here - begin) * (D // 2) + half
    cos, sin = tl.load(cosines + angle), tl.load(sines + angle)
    kind = keys.dtype.element_ty
    mine = qkv + row * ((G + 2) * N * D)
    source = mine + (group * G + g[:, None]) * D + half[None, :]
    x = tl.load(source, mask=g[:, None] < G, other=0).to(tl.float32)
    y = tl.load(source + D // 2, mask=g[:, None] < G, other=0).to(tl.float32)
    query_low, query_high = (x * cos - y * sin).to(kind), (y * cos + x * sin).to(kind)
    base = head.to(tl.int64) * L * D
    if (low <= here) & (here < high):  # this program reads the new column: it writes it
        new = mine + (G * N + group) * D + half
        new_x, new_y = tl.load(new).to(tl.float32), tl.load(new + D // 2).to(tl.float32)
        target = keys + base + here * D + half
        tl.store(target, (new_x * cos - new_y * sin).to(kind))
        tl.store(target + D // 2, (new_y * cos + new_x * sin).to(kind))
        tl.store(values + base + here * D + d, tl.load(mine + (G * N + N + group) * D + d))
    tl.debug_barrier()
    largest, total = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    sum_of_values = tl.zeros([ROWS, D], tl.float32)
    for start in range(low, high, C):
        seen = start + c < high
        key = keys + base + (start + c[None, :]) * D + half[:, None]
        score = tl.dot(query_low, tl.load(key, mask=seen[None, :], other=0), input_precision="ieee")
        score = tl.dot(query_high, tl.load(key + D // 2, mask=seen[None, :], other=0), score, input_precision="ieee")
        score = tl.where(seen[None, :], score * scale, LOWEST)
        larger = tl.maximum(largest, tl.max(score, 1))
        weight, kept = tl.exp(score - larger[:, None]), tl.exp(largest - larger)
        value = tl.load(values + base + (start + c[:, None]) * D + d[None, :], mask=seen[:, None], other=0)
        sum_of_values = sum_of_values * kept[:, None] + tl.dot(weight.to(kind), value, input_precision="ieee")
        total = total * kept + tl.sum(weight, 1)
        largest = larger
    part = head * S + split
    tl.store(parts + (part * ROWS + g[:, None]) * D + d[None, :], sum_of_values)
    tl.store(maxima + part * ROWS + g, largest)
    tl.store(sums + part * ROWS + g, total)


@triton.jit
def _combine(
    parts, maxima, sums, attended, G: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    head, g = tl.program_id(0), tl.program_id(1)
    d, row = tl.arange(0, D), (head * S + tl.arange(0, S)) * ROWS + g
    if AHEAD:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    largest, total = tl.load(maxima + row), tl.load(sums + row)
    weight = tl.where(total > 0, tl.exp(largest - tl.max(largest)), 0.0)
    part = tl.load(parts + row[:, None] * D + d[None, :])
    tl.store(attended + (head * G + g) * D + d, tl.sum(part * weight[:, None], 0) / tl.sum(weight * total))


@triton.jit
def _gate(gate_up, gated, size, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = gate_up + i // WIDTH * 2 * WIDTH + i % WIDTH
    gate = tl.load(source, mask=i < size, other=0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=i < size, other=0)
    tl.store(gated + i, (gate * tl.sigmoid(gate)).to(up.dtype) * up, mask=i < size)


class Kernels(Operators):
    """In Triton, but for the products."""

    ahead = False  # whether a kernel is launched while the one before it runs, see decode_few.py

    def add_norm(
        self, x_KH: torch.Tensor, delta_KH: torch.Tensor | None, weight_H: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """See Operators."""
        rows, size = x_KH.shape
        normed = torch.empty_like(x_KH)
        delta = x_KH if delta_KH is None else delta_KH
        block = triton.next_power_of_2(size)
        _add_norm[(rows,)](x_KH, delta, weight_H, normed, eps, H=size, BLOCK=block, ADD=delta_KH is not None)
        return normed

    def attend(
        self, qkv_KF: torch.Tensor, place: Place, keys_KNLD: torch.Tensor, values_KNLD: torch.Tensor
    ) -> torch.Tensor:
        """See Operators."""
        contexts, groups, columns, size = keys_KNLD.shape
        queries = qkv_KF.shape[1] // size // groups - 2
        heads = contexts * groups
        rows = max(16, triton.next_power_of_2(queries))  # a matrix product has 16 or more
        splits = min(64, max(1, triton.next_power_of_2(PROGRAMS // heads)))
        parts = torch.empty(heads, splits, rows, size, device=qkv_KF.device)
        maxima, sums = torch.empty(2, heads, splits, rows, device=qkv_KF.device)
        options: dict[str, Any] = {"launch_pdl": True} if self.ahead else {}
        _attend[(heads, splits)](
            qkv_KF, *place.angles, keys_KNLD, values_KNLD, place.column, place.first, parts, maxima, sums, columns,
            size**-0.5, N=groups, G=queries, ROWS=rows, D=size, S=splits, C=COLUMNS, AHEAD=self.ahead, **options,
        )  # fmt: skip
        attended = qkv_KF.new_empty(contexts, groups * queries * size)
        _combine[(heads, queries)](
            parts, maxima, sums, attended, G=queries, ROWS=rows, D=size, S=splits, AHEAD=self.ahead, **options
        )
        return attended

    def gate(self, gate_up_KF: torch.Tensor) -> torch.Tensor:
        """See Operators."""
        rows, width = gate_up_KF.shape
        gated = gate_up_KF.new_empty(rows, width // 2)
        _gate[(triton.cdiv(gated.numel(), 1024),)](gate_up_KF, gated, gated.numel(), WIDTH=width // 2, BLOCK=1024)
        return gated
