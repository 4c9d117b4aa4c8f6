"""GenEval as a reward: the benchmark's own rules and detector judge the samples of the training prompts."""

from functools import partial

import numpy as np

from simplear_rl.benchmarks.geneval import judge, partial_credit
from simplear_rl.config.benchmarks import DetectorConfig
from simplear_rl.config.rewards import GenEvalRewardConfig
from simplear_rl.rewards.files import read_requirements, require_entries
from simplear_rl.rewards.reward import Columns, WholeText
from simplear_rl.vision.detection import Detector
from simplear_rl.vision.shapes_detector import ShapesDetector


class GenEvalReward(WholeText):
    """1 for an image that GenEval finds correct, else 0; or the share of its requirements (`credit: partial`).

    Args:
        config: `metadata`, or none for the miniature world; `weight` is not applied.

    Raises:
        UserError: see `read_requirements`; the detector cannot be loaded.
    """

    def __init__(self, config: GenEvalRewardConfig, device: str = "cpu"):
        self.config, self.entries = config, read_requirements(config)
        self.detector: Detector = ShapesDetector()
        if config.metadata:
            from simplear_rl.vision.coco_detector import CocoDetector  # Transformers' models take seconds to import

            self.detector = CocoDetector(config.detector or DetectorConfig(), device)

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """No text is cut. Raises UserError if the metadata has no entry for one."""
        require_entries(self.entries, self.config, texts)
        return []

    def score(self, images: np.ndarray, texts: list[str], columns: Columns = ()) -> np.ndarray:
        """Rewards float32 [B] of uint8 images [B, H, W, 3] for their texts. Raises UserError, see `check`."""
        self.check(texts)
        rewards = []
        for image, text, found in zip(images, texts, self.detector.detect(list(images)), strict=True):
            asked = self.entries[text], found, partial(self.detector.colour, image)
            rewards.append(partial_credit(*asked) if self.config.credit == "partial" else judge(*asked).correct)
        return np.array(rewards, dtype=np.float32)
