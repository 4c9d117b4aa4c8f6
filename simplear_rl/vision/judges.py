"""What benchmarks and rewards ask visual judges, the models that answer questions about images; vqa.py has them.

Their numbers are their own: a report names the judge and says JUDGES_DIFFER.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

JUDGES_DIFFER = "Scores from different judges do not compare; DPG-Bench's published scores are mPLUG-large's."

Picture = np.ndarray | Image.Image  # uint8 [H, W, 3], or any PIL mode


class VisualJudge(Protocol):
    """What answers a question about an image; `name` goes into the results."""

    name: str

    def answer(self, images: Sequence[Picture], questions: Sequence[str]) -> list[str]:
        """The answer to each question about the image at the same place; "yes" is spelled exactly so."""


class ProbabilityJudge(Protocol):
    """What says how likely it would give an answer."""

    def probabilities(
        self, images: Sequence[Picture], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Probability of each question's answers about the image at the same place, float32 [N]."""
