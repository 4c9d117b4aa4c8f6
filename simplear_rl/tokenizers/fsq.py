"""A small image tokenizer with finite scalar quantisation (FSQ, arXiv 2309.15505), and its export.

It is exported as the pair of TorchScript files that the Cosmos tokenizer is published as, with the same contract:
`encoder.jit`: images [B, 3, 1, H, W] in [-1, 1] -> int32 indices [B, 1, h, w] (first of a tuple);
`decoder.jit`: indices [B, 1, h, w] -> images [B, 3, 1, H, W].
"""

import json
from math import prod
from pathlib import Path

import torch
from torch import nn


class FSQ(nn.Module):
    """Rounds each latent channel to one of `levels[i]` values; gradients pass straight through.

    index = sum_i digit_i * basis_i with channel 0 the least significant, as in the Cosmos tokenizer.
    """

    level: torch.Tensor
    basis: torch.Tensor

    def __init__(self, levels: list[int]):
        super().__init__()
        self.levels = levels
        self.register_buffer("level", torch.tensor(levels, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("basis", torch.tensor([prod(levels[:i]) for i in range(len(levels))]).view(-1, 1, 1))

    def digits(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent [B, C, h, w] -> digits 0 ... levels - 1, as floats with straight-through gradients."""
        bounded = torch.sigmoid(1.7 * latent) * (self.level - 1)  # of a unit normal: nearly uniform
        return bounded + (bounded.round() - bounded).detach()

    def indices(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits [B, C, h, w] -> codes int32 [B, h, w]."""
        return (digits.long() * self.basis).sum(1).int()

    def from_indices(self, indices: torch.Tensor) -> torch.Tensor:
        """Codes [B, h, w] -> digits [B, C, h, w]."""
        return torch.floor_divide(indices.unsqueeze(1), self.basis).remainder(self.level.long()).float()

    def centred(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits -> values in [-1, 1], the decoder's input."""
        return digits * 2 / (self.level - 1) - 1


class Residual(nn.Module):
    """x + conv1x1(silu(conv3x3(silu(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.SiLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class FsqTokenizer(nn.Module):
    """Encoder and decoder around FSQ; one code per 8 x 8 pixels. All layers work on the grid of codes."""

    patch = 8

    def __init__(self, levels: tuple[int, ...] = (8, 5, 5, 5), channels: int = 128):
        super().__init__()
        self.quantizer = FSQ(list(levels))
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(self.patch),
            nn.Conv2d(3 * self.patch**2, channels, 1),
            Residual(channels),
            nn.SiLU(),
            nn.Conv2d(channels, len(levels), 1),
            # Unit variance spreads the latents over all levels from the first step on.
            nn.BatchNorm2d(len(levels), affine=False),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(len(levels), channels, 3, padding=1),
            Residual(channels),
            Residual(channels),
            nn.SiLU(),
            nn.Conv2d(channels, 3 * self.patch**2, 1),
            nn.PixelShuffle(self.patch),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruction of images [B, 3, H, W] in [-1, 1]."""
        digits = self.quantizer.digits(self.encoder(images))
        return self.decoder(self.quantizer.centred(digits))


class _Encoder(nn.Module):
    def __init__(self, model: FsqTokenizer):
        super().__init__()
        self.encoder, self.quantizer = model.encoder, model.quantizer

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        digits = self.quantizer.digits(self.encoder(images.squeeze(2)))
        return self.quantizer.indices(digits).unsqueeze(1), digits.unsqueeze(2)


class _Decoder(nn.Module):
    def __init__(self, model: FsqTokenizer):
        super().__init__()
        self.decoder, self.quantizer = model.decoder, model.quantizer

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        digits = self.quantizer.from_indices(indices.squeeze(1).long())
        return self.decoder(self.quantizer.centred(digits)).unsqueeze(2)


def export(model: FsqTokenizer, folder: Path) -> None:
    """Write encoder.jit, decoder.jit and config.json to `folder`."""
    model = model.eval()
    example = torch.zeros(1, 3, 1, 8 * model.patch, 8 * model.patch)
    with torch.no_grad():
        encoder, decoder = _Encoder(model), _Decoder(model)
        torch.jit.trace(encoder, example).save(str(folder / "encoder.jit"))
        torch.jit.trace(decoder, encoder(example)[0]).save(str(folder / "decoder.jit"))
    (folder / "config.json").write_text(
        json.dumps({"levels": model.quantizer.levels, "patch": model.patch}), encoding="utf-8"
    )
