"""The exact detector of the miniature world: colour segmentation, connected components, template overlap."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import ndimage

from simplear_rl.shapes.world import BACKGROUND, COLOURS, RADIUS, SHAPES, shape_mask
from simplear_rl.vision.detection import Detection

SMALLEST_AREA = 30  # pixels; the smallest shape has about 120
# A template overlap (intersection over union) of 0.5 is confidence 0, one of 0.8 is confidence 1.
LOWEST_OVERLAP, FULL_OVERLAP = 0.5, 0.8


class ShapesDetector:
    """Finds the shapes of an image and their colours. Implements the GenEval Detector."""

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Detections of each image, uint8 [64, 64, 3]; one per connected region of one colour."""
        return [self._detect(image) for image in images]

    def colour(self, image: np.ndarray, detection: Detection) -> str:
        """Name of the palette colour nearest to most of the object's pixels."""
        return list(COLOURS)[np.bincount(_nearest_colour(image)[detection.mask], minlength=len(COLOURS)).argmax()]

    def _detect(self, image: np.ndarray) -> list[Detection]:
        nearest = _nearest_colour(image)
        detections = []
        for colour in range(len(COLOURS)):
            regions, number = ndimage.label(nearest == colour)
            for region in range(1, number + 1):
                mask = regions == region
                if mask.sum() >= SMALLEST_AREA:
                    detections.append(_classify(mask))
        return detections


def _nearest_colour(image: np.ndarray) -> np.ndarray:
    """Index of each pixel's nearest palette colour, [H, W]; the background comes last."""
    palette = np.array([*COLOURS.values(), BACKGROUND], float)
    return ((image[:, :, None].astype(float) - palette) ** 2).sum(-1).argmin(-1)


def _classify(mask: np.ndarray) -> Detection:
    rows, columns = np.nonzero(mask)
    left, top, right, bottom = (int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    centre_y, centre_x = (top + bottom) // 2, (left + right) // 2
    margin = 2 * RADIUS
    window = np.pad(mask, margin)[centre_y : centre_y + 2 * margin + 1, centre_x : centre_x + 2 * margin + 1]
    # The shape is looked for at small shifts around the middle of the region's box.
    overlaps = {
        shape: max((window & template).sum() / (window | template).sum() for template in _templates(shape, margin))
        for shape in SHAPES
    }
    label = max(overlaps, key=overlaps.__getitem__)
    confidence = np.clip((overlaps[label] - LOWEST_OVERLAP) / (FULL_OVERLAP - LOWEST_OVERLAP), 0, 1)
    return Detection(label, float(confidence), (left, top, right, bottom), mask)


@cache
def _templates(shape: str, margin: int, shift: int = 2) -> list[np.ndarray]:
    centred = np.pad(shape_mask(shape), margin - RADIUS)
    return [np.roll(centred, (dy, dx), (0, 1)) for dy in range(-shift, shift + 1) for dx in range(-shift, shift + 1)]
