"""Codes become files: PNG, JPEG or WebP; of an image that is not complete, its rows above a blank."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

BLANK = 238  # light grey
OPTIONS = {"png": {}, "jpeg": {"quality": 95}, "webp": {"quality": 95}}


class Pictures:
    """Decodes batches of images of one layout."""

    def __init__(self, tokenizer: Path, layout: ImageLayout, device: str):
        self.tokenizer, self.layout = CosmosTokenizer(tokenizer, device), layout

    def __call__(self, codes: Sequence[np.ndarray], formats: Sequence[str]) -> list[bytes]:
        """The files of images. An image's codes, integers [t], are complete or some of its first rows."""
        whole_BT = np.stack([self._completed(image) for image in codes])
        pixels_BHW3 = self.tokenizer.decode(whole_BT, self.layout.rows, self.layout.columns)
        files = []
        for image, pixels_HW3, name in zip(codes, pixels_BHW3, formats, strict=True):
            pixels_HW3[len(image) // self.layout.columns * self.tokenizer.patch :] = BLANK
            file = BytesIO()
            Image.fromarray(pixels_HW3).save(file, name, **OPTIONS[name])
            files.append(file.getvalue())
        return files

    def _completed(self, codes: np.ndarray) -> np.ndarray:
        """The last row again and again: the decoder blends neighbours, and its edge should look like what is there."""
        rows = codes.reshape(-1, self.layout.columns)
        below = np.repeat(rows[-1:], self.layout.rows - len(rows), axis=0)
        return np.concatenate([rows, below]).reshape(-1)
