"""decode_operators.py in Triton: nothing waits for the host, and one CUDA graph serves every length of the cache.

The kernels read the column from the device. Attention splits a row's columns among programs and combines what they
found (Flash-Decoding, https://pytorch.org/blog/flash-decoding/), so that a few contexts fill a GPU.
"""

import torch
import triton
import triton.language as tl

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


def add_norm(x_KH: torch.Tensor, delta_KH: torch.Tensor | None, weight_H: torch.Tensor, eps: float) -> torch.Tensor:
    """See decode_operators."""
    rows, size = x_KH.shape
    normed = torch.empty_like(x_KH)
    delta = x_KH if delta_KH is None else delta_KH
    block = triton.next_power_of_2(size)
    _add_norm[(rows,)](x_KH, delta, weight_H, normed, eps, H=size, BLOCK=block, ADD=delta_KH is not None)
    return normed


@triton.jit
def _rotate_and_store(
    qkv, cosines, sines, column, first, queries, keys, values, L, Q: tl.constexpr, N: tl.constexpr, D: tl.constexpr
):
    row, head = tl.program_id(0), tl.program_id(1)
    i, here = tl.arange(0, D // 2), tl.load(column)
    source = qkv + (row * (Q + 2 * N) + head) * D
    low, high = tl.load(source + i).to(tl.float32), tl.load(source + D // 2 + i).to(tl.float32)
    if head < Q + N:
        angle = (here - tl.load(first + row)) * (D // 2) + i
        cos, sin = tl.load(cosines + angle), tl.load(sines + angle)
        low, high = low * cos - high * sin, high * cos + low * sin
    if head < Q:
        target = queries + (row * Q + head) * D
        tl.store(target + i, low)
        tl.store(target + D // 2 + i, high)
    elif head < Q + N:
        target = keys + ((row * N + head - Q).to(tl.int64) * L + here) * D
        tl.store(target + i, low)
        tl.store(target + D // 2 + i, high)
    else:
        target = values + ((row * N + head - Q - N).to(tl.int64) * L + here) * D
        tl.store(target + i, low)
        tl.store(target + D // 2 + i, high)


def rotate_and_store(
    qkv_KF: torch.Tensor,
    angles_2LD: torch.Tensor,
    column: torch.Tensor,
    first_K: torch.Tensor,
    keys_KNLD: torch.Tensor,
    values_KNLD: torch.Tensor,
) -> torch.Tensor:
    """See decode_operators."""
    contexts, groups, columns, size = keys_KNLD.shape
    heads = qkv_KF.shape[1] // size
    queries = qkv_KF.new_empty(contexts, groups, heads // groups - 2, size)
    _rotate_and_store[(contexts, heads)](
        qkv_KF, angles_2LD[0], angles_2LD[1], column, first_K, queries, keys_KNLD, values_KNLD, columns,
        Q=heads - 2 * groups, N=groups, D=size,
    )  # fmt: skip
    return queries


@triton.jit
def _attend(
    queries, keys, values, column, first, parts, maxima, sums, L, scale,
    N: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    end, begin = tl.load(column) + 1, tl.load(first + head // N)
    share = (end - begin + S - 1) // S
    low = begin + split * share
    high = tl.minimum(low + share, end)
    g, d, c = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, C)
    query = tl.load(queries + (head * G + g[:, None]) * D + d[None, :], mask=g[:, None] < G, other=0)
    largest, total = tl.full([ROWS], LOWEST, tl.float32), tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, D], tl.float32)
    base = head.to(tl.int64) * L * D
    for start in range(low, high, C):
        seen = start + c < high
        key = tl.load(keys + base + (start + c[None, :]) * D + d[:, None], mask=seen[None, :], other=0)
        score = tl.where(seen[None, :], tl.dot(query, key, input_precision="ieee") * scale, LOWEST)
        larger = tl.maximum(largest, tl.max(score, 1))
        weight, kept = tl.exp(score - larger[:, None]), tl.exp(largest - larger)
        value = tl.load(values + base + (start + c[:, None]) * D + d[None, :], mask=seen[:, None], other=0)
        attended = attended * kept[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        total = total * kept + tl.sum(weight, 1)
        largest = larger
    part = head * S + split
    tl.store(parts + (part * ROWS + g[:, None]) * D + d[None, :], attended)
    tl.store(maxima + part * ROWS + g, largest)
    tl.store(sums + part * ROWS + g, total)


@triton.jit
def _combine(parts, maxima, sums, attended, G: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, S: tl.constexpr):
    head, g = tl.program_id(0), tl.program_id(1)
    d, row = tl.arange(0, D), (head * S + tl.arange(0, S)) * ROWS + g
    largest, total = tl.load(maxima + row), tl.load(sums + row)
    weight = tl.where(total > 0, tl.exp(largest - tl.max(largest)), 0.0)
    part = tl.load(parts + row[:, None] * D + d[None, :])
    tl.store(attended + (head * G + g) * D + d, tl.sum(part * weight[:, None], 0) / tl.sum(weight * total))


def attend(
    queries_KNGD: torch.Tensor,
    keys_KNLD: torch.Tensor,
    values_KNLD: torch.Tensor,
    column: torch.Tensor,
    first_K: torch.Tensor,
) -> torch.Tensor:
    """See decode_operators."""
    contexts, groups, queries, size = queries_KNGD.shape
    heads, rows = contexts * groups, max(16, triton.next_power_of_2(queries))  # a matrix product has 16 rows or more
    splits = min(64, max(1, triton.next_power_of_2(PROGRAMS // heads)))
    parts = torch.empty(heads, splits, rows, size, device=column.device)
    maxima, sums = torch.empty(2, heads, splits, rows, device=column.device)
    _attend[(heads, splits)](
        queries_KNGD, keys_KNLD, values_KNLD, column, first_K, parts, maxima, sums, keys_KNLD.shape[2], size**-0.5,
        N=groups, G=queries, ROWS=rows, D=size, S=splits, C=COLUMNS,
    )  # fmt: skip
    attended = queries_KNGD.new_empty(contexts, groups * queries * size)
    _combine[(heads, queries)](parts, maxima, sums, attended, G=queries, ROWS=rows, D=size, S=splits)
    return attended


@triton.jit
def _gate(gate_up, gated, size, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = gate_up + i // WIDTH * 2 * WIDTH + i % WIDTH
    gate = tl.load(source, mask=i < size, other=0).to(tl.float32)
    up = tl.load(source + WIDTH, mask=i < size, other=0)
    tl.store(gated + i, (gate * tl.sigmoid(gate)).to(up.dtype) * up, mask=i < size)


def gate(gate_up_KF: torch.Tensor) -> torch.Tensor:
    """See decode_operators."""
    rows, width = gate_up_KF.shape
    gated = gate_up_KF.new_empty(rows, width // 2)
    _gate[(triton.cdiv(gated.numel(), 1024),)](gate_up_KF, gated, gated.numel(), WIDTH=width // 2, BLOCK=1024)
    return gated
