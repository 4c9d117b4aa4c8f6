"""What a detector finds in an image. Rewards and benchmarks both use detectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Detection:
    """One object found in an image."""

    label: str
    confidence: float
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, y downwards
    mask: np.ndarray | None = None  # bool [H, W]


class Detector(Protocol):
    """What finds the objects in an image and names the colour of one."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """All detections of each image (uint8 [H, W, 3]), of any confidence."""

    def colour(self, image: np.ndarray, detection: Detection) -> str:
        """Colour name of a detected object."""
