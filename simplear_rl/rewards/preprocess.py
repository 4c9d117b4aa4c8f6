"""Pictures as a reward model wants them: uint8 [H, W, 3] -> float32 [3, h, w], resized and normalised.

A type of reward has its own transform, `simplear` names another one.
"""

from collections.abc import Callable

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, normalize, pad, resize, to_dtype

Transform = Callable[[np.ndarray], torch.Tensor]


def open_clip_transform(settings: PreprocessCfg, device: str) -> Transform:
    """open_clip's own: PIL resizes 8-bit pixels, on the CPU. No tensor operation gives exactly the same."""
    transform = image_transform_v2(settings, is_train=False)
    return lambda image: transform(Image.fromarray(image)).to(device)


def hpsv2_transform(settings: PreprocessCfg, device: str) -> Transform:
    """HPSv2's own (package hpsv2 1.2.0): bicubic on a float tensor, longest side to the model's size, black padding.

    It is not clamped, so it overshoots at edges where PIL does not. Antialiased, as torchvision does by default since
    0.17; with earlier versions hpsv2 computes without, and slightly other scores.
    """
    height, width = settings.size

    def transform(image: np.ndarray) -> torch.Tensor:
        pixels = _tensor(image, device)
        scale = min(height / pixels.shape[1], width / pixels.shape[2])
        size = [round(pixels.shape[1] * scale), round(pixels.shape[2] * scale)]
        pixels = resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
        below, right = height - size[0], width - size[1]
        pixels = pad(pixels, [right // 2, below // 2, right - right // 2, below - below // 2])
        return normalize(pixels, settings.mean, settings.std)

    return transform


def simplear_transform(settings: PreprocessCfg, device: str) -> Transform:
    """SimpleAR's (simpar/train/llava_trainer_grpo.py): bilinear to the model's size, without antialiasing.

    Published, the decoder's floats are resized, then clamped; here they were clamped and rounded to 8 bits before.
    """

    def transform(image: np.ndarray) -> torch.Tensor:
        pixels = resize(_tensor(image, device), list(settings.size), InterpolationMode.BILINEAR, antialias=False)
        return normalize(pixels, settings.mean, settings.std)

    return transform


def _tensor(image: np.ndarray, device: str) -> torch.Tensor:
    return to_dtype(torch.from_numpy(image).to(device).permute(2, 0, 1), torch.float32, scale=True)
