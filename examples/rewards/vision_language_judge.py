"""How probable it is that a vision-language model answers yes, asked whether an image shows its prompt.

    {type: python, function: examples/rewards/vision_language_judge.py:Judge}

The model and the way of asking are those of the DPG-Bench judge. A column `question` of the prompts file replaces the
question.
"""

from pathlib import Path

import numpy as np

from simplear_rl.device import default_device
from simplear_rl.vision.vqa import DEFAULT_MODEL, TransformersJudge

QUESTION = 'Does this image show "{prompt}"?'


class Judge:
    """The model: a folder or a Hugging Face id."""

    def __init__(self, model: str = DEFAULT_MODEL, batch_size: int = 16, dtype: str = "bfloat16"):
        self.judge = TransformersJudge(Path(model), batch_size, dtype, default_device())

    def __call__(self, images: np.ndarray, prompts: list[str], question: list[str] | None = None) -> np.ndarray:
        """P(yes) / (P(yes) + P(no)) of each image."""
        asked = question or [QUESTION.format(prompt=prompt) for prompt in prompts]
        return 1 / (1 + np.exp(-self.judge.margins(list(images), asked)))
