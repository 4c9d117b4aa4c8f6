"""The visual tokenizer in the published form of Cosmos-1.0-Tokenizer-DV8x16x16: a pair of TorchScript files."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

from simplear_rl.errors import UserError

# Of the official tokenizer, whose folder has no config.json of this form.
OFFICIAL = {"levels": [8, 8, 8, 5, 5, 5], "patch": 16}


@dataclass(frozen=True)
class TokenizerGeometry:
    """FSQ levels and pixels per code (along each axis)."""

    levels: list[int]
    patch: int

    @property
    def codebook_size(self) -> int:
        return prod(self.levels)


def read_geometry(folder: Path) -> TokenizerGeometry:
    """Geometry of a tokenizer folder. Raises UserError if one of its files is missing or config.json is broken."""
    for name in "encoder.jit", "decoder.jit":
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: not found; a visual tokenizer is a folder with encoder.jit and decoder.jit"
            )
    config = folder / "config.json"
    try:
        return TokenizerGeometry(**(json.loads(config.read_text()) if config.is_file() else OFFICIAL))
    except (ValueError, TypeError) as error:
        raise UserError(f"{config}: expected the keys levels and patch: {error}") from error


class CosmosTokenizer:
    """Images to codes and back."""

    def __init__(self, folder: Path, device: str = "cpu"):
        geometry = read_geometry(folder)
        self.codebook_size, self.patch = geometry.codebook_size, geometry.patch
        self.device = device
        self.encoder = _load(folder / "encoder.jit", device)
        self.decoder = _load(folder / "decoder.jit", device)

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 images [B, H, W, 3] -> codes int64 [B, h * w] in raster order.

        Raises:
            UserError: height or width is not a multiple of the patch.
        """
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise UserError(
                f"images of {images.shape[2]} x {images.shape[1]} pixels: sides must be multiples of {self.patch}"
            )
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        indices = self.encoder(pixels.unsqueeze(2))[0]
        return indices.flatten(1).cpu().numpy().astype(np.int64)

    @torch.no_grad()
    def decode(self, codes: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Codes [B, rows * columns] -> uint8 images [B, rows * patch, columns * patch, 3].

        Raises:
            UserError: a code is outside the codebook.
        """
        codes = codes.astype(np.int64)
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise UserError(
                f"codes from {codes.min()} to {codes.max()}: the codebook has 0 ... {self.codebook_size - 1}"
            )
        indices = torch.from_numpy(codes).to(self.device).view(-1, 1, rows, columns)
        pixels = self.decoder(indices).squeeze(2).float()
        return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _load(file: Path, device: str) -> torch.jit.ScriptModule:
    try:
        return torch.jit.load(file, map_location=device).eval()
    except RuntimeError as error:
        raise UserError(f"{file}: not a readable TorchScript file: {str(error).splitlines()[0]}") from error
