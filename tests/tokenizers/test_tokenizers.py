import numpy as np
import pytest
import torch

from simplear_rl.errors import UserError
from simplear_rl.tokenizers.cosmos import CosmosTokenizer, read_geometry
from simplear_rl.tokenizers.fsq import FSQ, FsqTokenizer, export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    export(FsqTokenizer(), path)
    return path


def test_indices_follow_the_cosmos_basis():
    # index = sum digit_i * basis_i with basis [1, 8, 64, 512, 2560, 12800]: channel 0 is the least significant.
    fsq = FSQ([8, 8, 8, 5, 5, 5])
    assert fsq.basis.flatten().tolist() == [1, 8, 64, 512, 2560, 12_800]
    digits = torch.tensor([7.0, 0, 3, 4, 1, 2]).view(1, 6, 1, 1)
    assert fsq.indices(digits).item() == 7 + 3 * 64 + 4 * 512 + 2560 + 2 * 12_800
    codes = torch.arange(64_000).view(1, 1, -1)
    assert torch.equal(fsq.indices(fsq.from_indices(codes)), codes.int())


def test_exported_pair_keeps_the_published_contract(folder):
    tokenizer = CosmosTokenizer(folder)
    pixels = torch.rand(2, 3, 1, 64, 64) * 2 - 1
    indices = tokenizer.encoder(pixels)[0]
    assert indices.shape == (2, 1, 8, 8)
    assert indices.dtype == torch.int32
    assert tokenizer.decoder(indices).shape == (2, 3, 1, 64, 64)


def test_codes_are_in_raster_order(folder):
    tokenizer = CosmosTokenizer(folder)
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    other = image.copy()
    other[0, 8:16, 24:32] = 0  # the patch of row 1, column 3
    changed = np.flatnonzero(tokenizer.encode(image)[0] != tokenizer.encode(other)[0])
    neighbours = {row * 8 + column for row in (0, 1, 2) for column in (2, 3, 4)}
    assert len(changed) and set(changed) <= neighbours
    assert tokenizer.decode(tokenizer.encode(image), 8, 8).shape == image.shape


def test_codes_outside_the_codebook_are_refused(folder):
    for code in -1, 1000:
        with pytest.raises(UserError, match=r"the codebook has 0 \.\.\. 999"):
            CosmosTokenizer(folder).decode(np.full((1, 64), code), 8, 8)


def test_images_that_do_not_divide_are_refused(folder):
    with pytest.raises(UserError, match="60 x 64 pixels: sides must be multiples of 8"):
        CosmosTokenizer(folder).encode(np.zeros((1, 64, 60, 3), np.uint8))


def test_missing_file_is_named(tmp_path, folder):
    (tmp_path / "encoder.jit").write_bytes((folder / "encoder.jit").read_bytes())
    with pytest.raises(UserError, match="decoder.jit: not found"):
        read_geometry(tmp_path)


def test_damaged_files_are_named(tmp_path, folder):
    for name in "encoder.jit", "decoder.jit", "config.json":
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "decoder.jit").write_bytes(b"no archive")
    with pytest.raises(UserError, match="decoder.jit: not a readable TorchScript file"):
        CosmosTokenizer(tmp_path)
    (tmp_path / "decoder.jit").write_bytes((folder / "decoder.jit").read_bytes())
    (tmp_path / "config.json").write_text('{"levels": [8]}')
    with pytest.raises(UserError, match="config.json: expected the keys levels and patch"):
        read_geometry(tmp_path)
    (tmp_path / "config.json").write_text('{"levels": [8, 8, 8, 8, 8, 8], "patch": 8}')
    with pytest.raises(UserError, match="make 262144 codes, expected 65536 at most"):
        read_geometry(tmp_path)
