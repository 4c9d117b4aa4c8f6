"""The visual tokenizer in the published form of Cosmos-1.0-Tokenizer-DV8x16x16: a pair of TorchScript files.

`encoder.jit`: images [B, 3, 1, H, W] in [-1, 1] -> int32 indices [B, 1, H / patch, W / patch] (first of a tuple);
`decoder.jit`: indices [B, 1, h, w] -> images [B, 3, 1, h * patch, w * patch], nominally in [-1, 1], not clamped.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from PIL import Image

from simplear_rl.errors import UserError
from simplear_rl.files import resolve

FILES = ("encoder.jit", "decoder.jit", "config.json")
# What one forward pass takes at most (one image, if that is larger): 4 images of 1024 x 1024 pixels, 16 of 512 x 512.
PIXELS_PER_PASS = 4 * 1024**2
# Types in TorchScript's code.
HALF, FLOAT32 = (5, 15), 6  # float16 and bfloat16


@dataclass(frozen=True)
class TokenizerGeometry:
    """FSQ levels and pixels per code (along each axis)."""

    levels: list[int]
    patch: int

    @property
    def codebook_size(self) -> int:
        return prod(self.levels)


CODES = 2**16  # at most: they are stored and sent in 16 bits
OFFICIAL = TokenizerGeometry([8, 8, 8, 5, 5, 5], 16)


def read_geometry(source: Path) -> TokenizerGeometry:
    """Geometry of a tokenizer: what config.json says, or the official one where it has neither `levels` nor `patch`.

    Raises:
        UserError: a file is missing, config.json is broken, or the Hugging Face Hub does not give them.
    """
    folder = resolve(source, FILES)
    for name in "encoder.jit", "decoder.jit":
        if not os.path.isfile(folder / name):
            raise UserError(
                f"{folder / name}: not found; a visual tokenizer is a folder with encoder.jit and decoder.jit"
            )
        if not is_zipfile(folder / name):
            raise UserError(f"{folder / name}: not a readable TorchScript file: damaged, or of another kind")
    config = folder / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        if not values.keys() & {"levels", "patch"}:
            return OFFICIAL
        levels, patch = values["levels"], values["patch"]
        if not all(isinstance(n, int) and n > 0 for n in (*levels, patch)):
            raise ValueError(f"levels {levels} and patch {patch} must be positive integers")
        if prod(levels) > CODES:
            raise ValueError(f"levels {levels} make {prod(levels)} codes, expected {CODES} at most")
        return TokenizerGeometry(levels, patch)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config}: expected the keys levels and patch: {error}") from error


def read_identity(source: Path) -> str:
    """What tells a tokenizer from others of the same geometry: "sha256:" and the SHA-256 of encoder.jit, in hex.

    Raises:
        UserError: the file cannot be read, or the Hugging Face Hub does not give it.
    """
    file = resolve(source, FILES) / "encoder.jit"
    try:
        with file.open("rb") as encoder:
            return "sha256:" + hashlib.file_digest(encoder, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


class CosmosTokenizer:
    """Images to codes and back, at any resolution that the patch divides.

    Images enter the encoder in the type of its own parameters: bfloat16 in the official files, float32 in those of
    `fsq.export`. On a CPU all compute in float32: some of its kernels know no other type. Large
    batches take several forward passes, see PIXELS_PER_PASS.

    Args:
        source: folder with the two files, or Hugging Face id, for example nvidia/Cosmos-1.0-Tokenizer-DV8x16x16.
        device: where they run.
    """

    def __init__(self, source: Path, device: str = "cpu"):
        geometry = read_geometry(source)
        self.codebook_size, self.patch = geometry.codebook_size, geometry.patch
        self.source, self.device = source, device
        folder = resolve(source, FILES)
        self.encoder = _load(folder / "encoder.jit", device)
        self.decoder = _load(folder / "decoder.jit", device)
        self.dtype = next((p.dtype for p in self.encoder.parameters() if p.is_floating_point()), torch.float32)
        if device == "cpu" and self.dtype != torch.float32:
            print(f"visual tokenizer {source}: {self.dtype} computes in float32 on a CPU", flush=True)
            self.dtype = torch.float32
            _to_float32(self.encoder)
            _to_float32(self.decoder)

    @torch.no_grad()
    def encode(self, images: np.ndarray | Sequence[Image.Image]) -> np.ndarray:
        """RGB images -> codes int64 [B, h * w] in raster order.

        Args:
            images: uint8 [B, H, W, 3], or PIL images of one size.

        Raises:
            UserError: the images are not RGB, not of one size, or a side is not a multiple of the patch.
        """
        pixels_BHWC = images if isinstance(images, np.ndarray) else _stack(images)
        if pixels_BHWC.dtype != np.uint8 or pixels_BHWC.shape[3:] != (3,) or not len(pixels_BHWC):
            raise UserError(f"expected images uint8 [B, H, W, 3], found {pixels_BHWC.dtype} {list(pixels_BHWC.shape)}")
        _, height, width, _ = pixels_BHWC.shape
        if height % self.patch or width % self.patch:
            raise UserError(f"images of {width} x {height} pixels: sides must be multiples of {self.patch}")
        codes = []
        for part in self._passes(pixels_BHWC, height * width):
            pixels = torch.from_numpy(part).to(self.device).permute(0, 3, 1, 2).unsqueeze(2)
            indices = self.encoder((pixels.float() / 127.5 - 1).to(self.dtype))[0]
            self._check_shape("encoder.jit", indices, [len(part), 1, height // self.patch, width // self.patch])
            codes.append(indices.flatten(1).cpu().numpy().astype(np.int64))
        codes_BT = np.concatenate(codes)
        self._check_range(codes_BT)
        return codes_BT

    @torch.no_grad()
    def decode(self, codes: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Codes, integers [B, rows * columns] -> uint8 images [B, rows * patch, columns * patch, 3].

        Raises:
            UserError: the codes are not integers, of another shape, or outside the codebook.
        """
        if not np.issubdtype(codes.dtype, np.integer) or codes.shape[1:] != (rows * columns,) or not len(codes):
            raise UserError(f"expected codes, integers [B, {rows * columns}], found {codes.dtype} {list(codes.shape)}")
        self._check_range(codes)
        height, width = rows * self.patch, columns * self.patch
        images = []
        for part in self._passes(codes, height * width):
            indices = torch.from_numpy(part.astype(np.int64)).to(self.device).view(-1, 1, rows, columns)
            pixels = self.decoder(indices)
            self._check_shape("decoder.jit", pixels, [len(part), 3, 1, height, width])
            if not pixels.isfinite().all():
                raise UserError(f"visual tokenizer {self.source}: decoder.jit gives pixels that are not finite")
            pixels = (pixels.squeeze(2).float().clamp(-1, 1) + 1) * 127.5
            images.append(pixels.round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(images)

    def _passes(self, batch: np.ndarray, pixels: int) -> list[np.ndarray]:
        """`batch` in parts that fit one forward pass, at so many pixels per image."""
        size = max(1, PIXELS_PER_PASS // pixels)
        return [batch[start : start + size] for start in range(0, len(batch), size)]

    def _check_shape(self, name: str, found: torch.Tensor, shape: list[int]) -> None:
        if list(found.shape) != shape:
            raise UserError(f"visual tokenizer {self.source}: {name} gives {list(found.shape)}, expected {shape}")

    def _check_range(self, codes: np.ndarray) -> None:
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise UserError(
                f"codes from {codes.min()} to {codes.max()}: the codebook has 0 ... {self.codebook_size - 1}"
            )


def _stack(images: Sequence[Image.Image]) -> np.ndarray:
    """PIL images as uint8 [B, H, W, 3]. Raises UserError unless all are RGB and of one size."""
    kinds = {(image.mode, image.size) for image in images}
    if len(kinds) != 1 or next(iter(kinds))[0] != "RGB":
        found = ", ".join(f"{mode} {width} x {height}" for mode, (width, height) in sorted(kinds)) or "none"
        raise UserError(f"expected RGB images of one size, found {found}")
    return np.stack([np.asarray(image) for image in images])


def _load(file: Path, device: str) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(file, map_location=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{file}: not a readable TorchScript file: {str(error).splitlines()[0]}") from error


def _to_float32(module: torch.jit.ScriptModule) -> None:
    """Turn weights into float32, and so the casts to half precision that are written in the module's code."""
    module.float()
    for part in module.modules():
        for graph in (part._c._get_method(name).graph for name in part._c._method_names()):  # type: ignore[union-attr,operator]
            for constant in graph.findAllNodes("prim::Constant"):
                if constant.output().type().kind() == "IntType" and constant.i("value") in HALF:
                    for use in constant.output().uses():  # a 15 may also be a number
                        if use.user.schema() != "(no schema)" and _argument(use) == "dtype":
                            with graph.insert_point_guard(use.user):
                                use.user.replaceInput(use.offset, graph.insertConstant(FLOAT32))


def _argument(use: torch._C.Use) -> str:
    """The name of the argument of an operator that a value is used as."""
    return torch._C.parse_schema(use.user.schema()).arguments[use.offset].name
