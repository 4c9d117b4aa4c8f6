"""A benchmark's verdict on rollouts: decode, detect, judge."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from simplear_rl.benchmarks.geneval import Detector, judge
from simplear_rl.device import default_device
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.types import Rollout
from simplear_rl.shapes.detector import ShapesDetector
from simplear_rl.shapes.world import evaluation_prompts
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

PROMPTS: dict[str, Callable[[], list[dict]]] = {"shapes": evaluation_prompts}
DETECTORS: dict[str, Callable[[], Detector]] = {"shapes": ShapesDetector}


class BenchmarkScorer:
    """The visual tokenizer and the benchmark's detector."""

    def __init__(self, benchmark: str, tokenizer: Path, layout: ImageLayout):
        self.tokenizer = CosmosTokenizer(tokenizer, default_device())
        self.layout = layout
        self.detector = DETECTORS[benchmark]()

    def judge(self, rollout: Rollout, metadata: dict, folder: Path) -> list[dict]:
        """Verdicts on a prompt's images, one row each; writes the images to `folder` in GenEval's layout."""
        images = self.tokenizer.decode(rollout.codes, self.layout.rows, self.layout.columns)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
        rows = []
        for k, (image, detections) in enumerate(zip(images, self.detector.detect(images), strict=True)):
            Image.fromarray(image).save(folder / "samples" / f"{k:05d}.png")
            verdict = judge(metadata, detections, partial(self.detector.colour, image))
            rows.append(
                {
                    "filename": f"{folder.name}/samples/{k:05d}.png",
                    "tag": metadata["tag"],
                    "prompt": metadata["prompt"],
                    "correct": verdict.correct,
                    "reasons": verdict.reasons,
                }
            )
        return rows
