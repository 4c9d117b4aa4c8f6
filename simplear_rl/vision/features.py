"""Features of images, by which their diversity is measured."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from simplear_rl.config.benchmarks import FeaturesConfig
from simplear_rl.errors import UserError
from simplear_rl.vision.clip import LOAD_ERRORS, load_clip


class ImageFeatures:
    """The image tower of a CLIP. Raises UserError if it cannot be loaded; never falls back to random weights."""

    def __init__(self, config: FeaturesConfig, device: str = "cpu"):
        self.config, self.device, self.dtype = config, device, getattr(torch, config.dtype)
        try:
            self.model, self.preprocess = load_clip(config.model, config.weights, config.dtype, device)
        except LOAD_ERRORS as error:
            raise UserError(
                f"diversity.model {config.model} with weights {config.weights}: cannot be loaded: {error}"
            ) from error

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Normalised features float32 [B, D] of uint8 images [H, W, 3]."""
        parts = []
        for start in range(0, len(images), self.config.batch_size):
            batch = images[start : start + self.config.batch_size]
            pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in batch])
            features = self.model.encode_image(pixels.to(self.device, self.dtype)).float()
            parts.append(normalize(features, dim=-1))
        return torch.cat(parts).cpu().numpy()
