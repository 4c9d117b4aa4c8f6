"""What the checksum notices, and how weights are put into buckets."""

import pytest
import torch

from simplear_rl.weights.snapshot import BLOCK, checksum, in_buckets


def of(tensor: torch.Tensor) -> dict[str, str]:
    return checksum([("weight", tensor)])


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten().view(torch.uint8)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def weight(request):
    return torch.randn(3, BLOCK + 5, generator=torch.Generator().manual_seed(0)).to(request.param)  # odd: padded


def test_equal_bits_have_equal_checksums_wherever_they_lie(weight):
    apart = torch.zeros(weight.shape[1], 4, dtype=weight.dtype)
    apart[:, :3] = weight.T
    assert of(apart.T[:3]) == of(weight)
    assert of(weight.clone()) == of(weight)


def test_any_flipped_bit_is_noticed():
    weight = torch.randn(4, 5)
    seen = {of(weight)["weight"]}
    for octet in range(weight.nbytes):
        for bit in range(8):
            damaged = weight.clone()
            bits(damaged)[octet] ^= 1 << bit
            seen.add(of(damaged)["weight"])
    assert len(seen) == 1 + 8 * weight.nbytes


def test_a_flipped_bit_is_noticed_in_every_block(weight):
    for octet in 0, 4 * BLOCK - 1, weight.nbytes // 2, weight.nbytes - 1:
        damaged = weight.clone()
        bits(damaged)[octet] ^= 0x80
        assert of(damaged) != of(weight)


def test_what_keeps_the_sum_of_the_values_is_noticed(weight):
    swapped_rows, rolled, moved, exchanged = (weight.clone() for _ in range(4))
    swapped_rows[[0, 1]] = weight[[1, 0]]
    rolled[0] = weight[0].roll(1)
    moved.view(-1)[: 2 * BLOCK] = weight.view(-1)[: 2 * BLOCK].roll(BLOCK)  # whole blocks, in float32
    exchanged[0, 0], exchanged[0, 2] = weight[0, 2], weight[0, 0]
    for damaged in swapped_rows, rolled, moved, exchanged:
        assert of(damaged) != of(weight)
    signs = torch.ones(4, 8, dtype=weight.dtype)
    signs[0, 0] = signs[0, 4] = -1
    for row in range(1, 4):  # words that differ in their highest bits only
        other = signs.clone()
        other[[0, row]] = signs[[row, 0]]
        assert of(other) != of(signs)


def test_shape_type_and_name_belong_to_it():
    weight = torch.zeros(2, 6)
    for other in torch.zeros(3, 4), torch.zeros(13), torch.zeros(2, 6, dtype=torch.int32), torch.zeros(2, 7):
        assert of(other) != of(weight)
    a, b = torch.randn(2, 4)
    assert checksum([("a", a), ("b", b)]) == checksum([("b", b), ("a", a)]) != checksum([("a", b), ("b", a)])


def test_buckets_are_bounded_and_complete():
    sizes = {"a": 3, "b": 3, "c": 5, "d": 20, "e": 1, "f": 1}
    assert list(in_buckets(sizes, 8)) == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert list(in_buckets(sizes, 100)) == [list(sizes)]
