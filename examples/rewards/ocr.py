"""Whether an image shows the text that its prompt has in double quotes, read by RapidOCR (as in Flow-GRPO).

    {type: python, function: examples/rewards/ocr.py:Ocr, on_error: skip_group}

    pip install rapidocr onnxruntime

The package brings the weights. The score is 1 - edits / length: 1 where the text is among what is read, 0 where as many
letters must be changed as it has. Spaces and case do not count. A prompt without quotes cannot be scored.
"""

import re

import numpy as np
from rapidocr import RapidOCR

QUOTED = re.compile(r'["“](.+?)["”]')


class Ocr:
    """The reader."""

    def __init__(self):
        self.read = RapidOCR()

    def __call__(self, images: np.ndarray, prompts: list[str]) -> list[float | None]:
        """A score for each image, None for a prompt without quotes."""
        return [self.score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def score(self, image: np.ndarray, prompt: str) -> float | None:
        """Of one image, uint8 [H, W, 3]."""
        asked = _plain("".join(QUOTED.findall(prompt)))
        if not asked:
            return None
        found = _plain("".join(self.read(np.ascontiguousarray(image[..., ::-1])).txts or ()))  # it expects BGR
        return 1.0 if asked in found else 1 - min(edits(asked, found), len(asked)) / len(asked)


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def edits(a: str, b: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        above, row = row, [i]
        for j, other in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other)))
    return row[-1]
