"""The contract of the official tokenizer, on a stand-in that is exported and called like it: bfloat16, patch 16."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError
from simplear_rl.inputs import require
from simplear_rl.tokenizers import cosmos
from simplear_rl.tokenizers.cosmos import CosmosTokenizer, read_geometry

LEVELS, BASIS = np.array([8, 8, 8, 5, 5, 5]), np.array([1, 8, 64, 512, 2560, 12_800])
OVERSHOOT = 1.25


class Encoder(nn.Module):
    """Red, green and blue of a patch's left half are digits 0 to 2, of its right half digits 3 to 5."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False, dtype=torch.bfloat16)  # refuses every type but its own
        self.conv.weight.data.copy_(torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("levels", torch.tensor(LEVELS).view(6, 1, 1))
        self.register_buffer("basis", torch.tensor(BASIS).view(6, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(images.squeeze(2)).float()
        halves = x.unfold(2, 16, 16).unfold(3, 8, 8).mean([-2, -1])  # [B, 3, h, 2 w]
        latent = torch.cat([halves[..., 0::2], halves[..., 1::2]], 1)
        digits = ((latent + 1) / 2 * (self.levels - 1)).round().long()
        return (digits * self.basis).sum(1, keepdim=True).int(), latent.unsqueeze(2)


class Decoder(nn.Module):
    """The inverse, in bfloat16 and a quarter too bright or dark: beyond [-1, 1] at the extreme digits."""

    def __init__(self):
        super().__init__()
        self.register_buffer("levels", torch.tensor(LEVELS).view(6, 1, 1))
        self.register_buffer("basis", torch.tensor(BASIS).view(6, 1, 1))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        digits = torch.div(indices, self.basis, rounding_mode="floor").remainder(self.levels)
        latent = 1.25 * (digits * 2 / (self.levels - 1) - 1)
        halves = torch.stack([latent[:, :3], latent[:, 3:]], -1).flatten(-2)  # [B, 3, h, 2 w]
        return halves.repeat_interleave(16, 2).repeat_interleave(8, 3).unsqueeze(2).to(torch.bfloat16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("official")
    torch.jit.script(Encoder()).save(str(path / "encoder.jit"))
    torch.jit.script(Decoder()).save(str(path / "decoder.jit"))
    return path


def random_digits(rows: int, columns: int, seed: int = 0, images: int = 1) -> np.ndarray:
    """Digits [B, h, w, 6] that `picture` shows and the encoder reads."""
    return np.random.default_rng(seed).integers(0, LEVELS, (images, rows, columns, 6))


def picture(digits: np.ndarray, contrast: float = 1.0) -> np.ndarray:
    """uint8 [B, 16 h, 16 w, 3] whose patches have these digits."""
    values = np.clip(contrast * (digits * 2 / (LEVELS - 1) - 1), -1, 1)
    halves = values.reshape(*digits.shape[:2], 2 * digits.shape[2], 3)
    return np.rint((halves + 1) * 127.5).astype(np.uint8).repeat(16, 1).repeat(8, 2)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 64)])
def test_images_and_codes_of_any_resolution_that_the_patch_divides(folder, rows, columns):
    tokenizer = CosmosTokenizer(folder)
    assert (tokenizer.codebook_size, tokenizer.patch, tokenizer.dtype) == (64_000, 16, torch.float32)
    digits = random_digits(rows, columns, images=2)
    codes = tokenizer.encode(picture(digits))
    assert np.array_equal(codes, (digits * BASIS).sum(-1).reshape(2, -1))  # raster order, basis of the facts
    # Black is -1 and white is 1, both ways; what the decoder gives beyond is cut there.
    decoded = tokenizer.decode(codes.astype(np.uint16), rows, columns).astype(int)
    assert np.abs(decoded - picture(digits, OVERSHOOT)).max() <= 1  # bfloat16 keeps 8 bits


def test_large_batches_take_several_passes(folder, monkeypatch):
    tokenizer = CosmosTokenizer(folder)
    images = picture(random_digits(2, 2, images=7))
    codes = tokenizer.encode(images)
    whole = tokenizer.decode(codes, 2, 2)
    sizes = []
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    tokenizer.encoder = lambda pixels: sizes.append(len(pixels)) or encoder(pixels)
    tokenizer.decoder = lambda indices: sizes.append(len(indices)) or decoder(indices)
    monkeypatch.setattr(cosmos, "PIXELS_PER_PASS", 3 * 32 * 32)
    assert np.array_equal(tokenizer.encode(images), codes)
    assert np.array_equal(tokenizer.decode(codes, 2, 2), whole)
    assert sizes == [3, 3, 1, 3, 3, 1]
    monkeypatch.setattr(cosmos, "PIXELS_PER_PASS", 1)  # an image is never split
    assert np.array_equal(tokenizer.decode(codes, 2, 2), whole)


def test_pil_images_are_read_like_arrays(folder):
    tokenizer = CosmosTokenizer(folder)
    images = picture(random_digits(2, 3, images=2))
    assert np.array_equal(tokenizer.encode([Image.fromarray(image) for image in images]), tokenizer.encode(images))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([Image.new("RGB", (32, 16)), Image.new("RGB", (16, 16))], "of one size, found RGB 16 x 16, RGB 32 x 16"),
        ([Image.new("L", (32, 16))], "expected RGB images of one size, found L 32 x 16"),
        ([], "expected RGB images of one size, found none"),
        (np.zeros((1, 16, 16, 3), np.float32), r"expected images uint8 \[B, H, W, 3\], found float32"),
        (np.zeros((16, 16, 3), np.uint8), r"expected images uint8 \[B, H, W, 3\], found uint8 \[16, 16, 3\]"),
        (np.zeros((0, 16, 16, 3), np.uint8), r"found uint8 \[0, 16, 16, 3\]"),
        (np.zeros((1, 16, 24, 3), np.uint8), "24 x 16 pixels: sides must be multiples of 16"),
    ],
)
def test_images_it_cannot_read_are_refused(folder, images, message):
    with pytest.raises(UserError, match=message):
        CosmosTokenizer(folder).encode(images)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 1, 2, 64_000]], r"codes from 0 to 64000: the codebook has 0 \.\.\. 63999"),
        ([[0, 1, 2, -1]], "codes from -1 to 2"),
        ([[0, 1, 2, 3.0]], r"expected codes, integers \[B, 4\], found float64"),
        ([[0, 1, 2, float("nan")]], "found float64"),
        ([[0, 1, 2]], r"integers \[B, 4\], found int64 \[1, 3\]"),
        ([0, 1, 2, 3], r"found int64 \[4\]"),
        (np.zeros((0, 4), np.uint16), r"found uint16 \[0, 4\]"),
    ],
)
def test_codes_that_are_none_are_refused(folder, codes, message):
    with pytest.raises(UserError, match=message):
        CosmosTokenizer(folder).decode(np.asarray(codes), 2, 2)


def test_config_json_of_another_form_leaves_the_official_geometry(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text('{"architectures": ["CosmosTokenizer"]}')
    assert read_geometry(tmp_path / "t") == cosmos.OFFICIAL


def test_files_that_do_not_fit_the_geometry_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t")
    (tmp_path / "t" / "config.json").write_text('{"levels": [8, 5, 5, 5], "patch": 8}')
    tokenizer = CosmosTokenizer(tmp_path / "t")
    with pytest.raises(UserError, match=r"encoder.jit gives \[1, 1, 1, 2\], expected \[1, 1, 2, 4\]"):
        tokenizer.encode(np.zeros((1, 16, 32, 3), np.uint8))
    with pytest.raises(UserError, match=r"decoder.jit gives \[1, 3, 1, 16, 16\], expected \[1, 3, 1, 8, 8\]"):
        tokenizer.decode(np.zeros((1, 1), int), 1, 1)
    (tmp_path / "t" / "config.json").write_text('{"levels": [8], "patch": 16}')
    with pytest.raises(UserError, match=r"the codebook has 0 \.\.\. 7"):
        CosmosTokenizer(tmp_path / "t").encode(np.full((1, 16, 32, 3), 255, np.uint8))


def test_pixels_that_are_not_finite_are_refused(folder):
    tokenizer = CosmosTokenizer(folder)
    tokenizer.decoder = lambda indices: torch.full((1, 3, 1, 16, 16), torch.nan)
    with pytest.raises(UserError, match="decoder.jit gives pixels that are not finite"):
        tokenizer.decode(np.zeros((1, 1), int), 1, 1)


def test_hugging_face_id_is_used_wherever_a_folder_is(folder, tmp_path, monkeypatch):
    hub_id = "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16"
    cache = tmp_path / ("models--" + hub_id.replace("/", "--"))  # as the Hub's client lays it out
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", [f"tokenizer={hub_id}", "world=null"])
    assert str(config.tokenizer) == hub_id
    require(config, config.tokenizer)
    assert read_geometry(config.tokenizer) == cosmos.OFFICIAL
    images = picture(random_digits(2, 2))
    assert np.array_equal(CosmosTokenizer(config.tokenizer).encode(images), CosmosTokenizer(folder).encode(images))
    with pytest.raises(UserError, match="nobody/nothing: no folder of that name, and the Hugging Face Hub does not"):
        read_geometry(Path("nobody/nothing"))


def test_a_folder_comes_before_a_hugging_face_id(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "nvidia" / "cosmos")
    monkeypatch.chdir(tmp_path)
    overrides = ["tokenizer=nvidia/cosmos", "world=null"]
    config = load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", overrides)
    assert config.tokenizer == tmp_path / "nvidia" / "cosmos"


class Pooling(nn.Module):
    """Casts to bfloat16 in its code, in a method too, and pools as CPUs cannot in bfloat16."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1, dtype=torch.bfloat16)

    def half(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.bfloat16) + torch.ones(1, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.avg_pool3d(x.to(torch.bfloat16), [1, 16, 16])
        return self.conv(self.half(pooled)) * 15  # the number of bfloat16 in the code, here a factor


class PoolingEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pooling = Pooling()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pooling(images)
        return (x.mean(1).abs() * 1000).int(), x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32_on_a_cpu(folder, tmp_path, capsys, dtype):
    shutil.copytree(folder, tmp_path / "t")
    torch.manual_seed(0)
    encoder = torch.jit.script(PoolingEncoder().to(dtype))
    encoder.save(tmp_path / "t" / "encoder.jit")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 16, 3), dtype=np.uint8)
    if dtype == torch.bfloat16:
        with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
            encoder(torch.zeros(1, 3, 1, 16, 16, dtype=dtype))
    codes = CosmosTokenizer(tmp_path / "t").encode(pixels)
    assert capsys.readouterr().out.count("computes in float32 on a CPU") == 1
    conv = encoder.pooling.conv.float()
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).unsqueeze(2).float() / 127.5 - 1
    expected = conv(nn.functional.avg_pool3d(x, [1, 16, 16]) + 1) * 15
    assert np.array_equal(codes, (expected.mean(1).abs() * 1000).int().flatten(1).numpy())
