"""Codes become files: PNG, JPEG or WebP; of an image that is not complete, its rows above a blank."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

BLANK = 238  # light grey
OPTIONS = {"png": {}, "jpeg": {"quality": 95}, "webp": {"quality": 95}}


class Pictures:
    """Decodes images of one layout, one at a time: in a batch some pixels are rounded otherwise, as the batch is."""

    def __init__(self, tokenizer: Path, layout: ImageLayout, device: str):
        self.tokenizer, self.layout = CosmosTokenizer(tokenizer, device), layout

    def __call__(self, codes: np.ndarray, output_format: str) -> bytes:
        """The file of an image, whose codes, integers [t], are all of them or those of its first rows."""
        known = codes.reshape(-1, self.layout.columns)
        # The last row again and again: the decoder blends neighbours, and its edge should look like what is there.
        below = np.repeat(known[-1:], self.layout.rows - len(known), axis=0)
        whole_1T = np.concatenate([known, below]).reshape(1, -1)
        pixels_HW3 = self.tokenizer.decode(whole_1T, self.layout.rows, self.layout.columns)[0]
        pixels_HW3[len(known) * self.tokenizer.patch :] = BLANK
        file = BytesIO()
        Image.fromarray(pixels_HW3).save(file, output_format, **OPTIONS[output_format])
        return file.getvalue()
