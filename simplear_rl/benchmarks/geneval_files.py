"""GenEval as a Benchmark: its folder of images, its rows and its scores.

The folder has `NNNNN/metadata.jsonl` and `NNNNN/samples/0000k.png` for line N of the metadata, as djghosh13/geneval
writes and reads it; a `grid.png` beside the samples, which its own generation script makes, is left alone.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from simplear_rl.benchmarks.benchmark import Box, Sample, read_image
from simplear_rl.benchmarks.geneval import TAGS, confidence_intervals, judge, scores
from simplear_rl.characters import tidy
from simplear_rl.errors import UserError
from simplear_rl.vision.detection import Detection, Detector

SAMPLE = re.compile(r"[0-9]+\.png")


class GenEval:
    """The benchmark of a list of metadata entries. Implements Benchmark."""

    def __init__(self, entries: list[dict]):
        self.entries = entries
        self.texts = [entry["prompt"] for entry in entries]

    def write(self, folder: Path, index: int, images: np.ndarray) -> None:
        """See Benchmark."""
        prompt = folder / f"{index:05d}"
        (prompt / "samples").mkdir(parents=True, exist_ok=True)
        (prompt / "metadata.jsonl").write_text(json.dumps(self.entries[index]) + "\n", encoding="utf-8")
        for k, image in enumerate(images):
            Image.fromarray(image).save(prompt / "samples" / f"{k:05d}.png")

    def load(self, folder: Path, index: int, number: int) -> tuple[list[Sample], list[str]]:
        """See Benchmark. Images count by their numbers, from 0; metadata must be that of the prompt."""
        prompt = folder / f"{index:05d}"
        if not prompt.is_dir():
            return [], [f"{prompt}: missing (prompt {self.texts[index]!r})"]
        try:
            metadata = json.loads((prompt / "metadata.jsonl").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return [], [f"{prompt / 'metadata.jsonl'}: cannot be read: {error}"]
        if isinstance(metadata, dict):
            metadata["prompt"] = tidy(str(metadata.get("prompt")))  # as that of the entries
        if metadata != self.entries[index]:
            return [], [f"{prompt / 'metadata.jsonl'}: expected {self.entries[index]}, found {metadata}"]
        samples, problems = [], []
        files = [path for path in _listed(prompt / "samples") if SAMPLE.fullmatch(path.name)]
        for k in range(number):
            named = [path for path in files if int(path.stem) == k]
            if not named:
                problems.append(f"{prompt / 'samples' / f'{k:05d}.png'}: missing")
                continue
            files.remove(named[0])
            try:
                samples.append(Sample(f"{prompt.name}/samples/{named[0].name}", k, read_image(named[0])))
            except UserError as error:
                problems.append(str(error))
        return samples, problems + [f"{path}: one too many, expected {number}" for path in files]

    def extra(self, folder: Path) -> list[str]:
        """See Benchmark."""
        expected = {f"{i:05d}" for i in range(len(self.entries))}
        found = sorted(path for path in folder.iterdir() if path.name not in expected)
        for prompt in sorted(folder / name for name in expected):
            found += [path for path in _listed(prompt) if path.name not in ("metadata.jsonl", "samples", "grid.png")]
            found += [path for path in _listed(prompt / "samples") if not SAMPLE.fullmatch(path.name)]
        return [f"{path}: belongs to no prompt" for path in found]

    def judge(self, index: int, samples: Sequence[Sample], model: Detector) -> list[dict]:
        """See Benchmark. `objects` are those above the threshold; a colour stands with those that were asked for it."""
        found = model.detect([sample.pixels for sample in samples])
        return [
            _row(self.entries[index], sample, detections, model)
            for sample, detections in zip(samples, found, strict=True)
        ]

    def score_names(self) -> list[str]:
        """See Benchmark."""
        if missing := [tag for tag in TAGS if tag not in {entry["tag"] for entry in self.entries}]:
            raise UserError(
                f"{len(self.entries)} prompts, and none of {', '.join(missing)}: no score without them; raise "
                "prompt_count where it is set"
            )
        return [*TAGS, "overall"]

    def summary(self, rows: Sequence[dict]) -> dict:
        """See Benchmark."""
        rows = list(rows)
        return {"scores": scores(rows), "confidence_intervals": confidence_intervals(rows, seed=0)}

    def section(self, index: int) -> str:
        """See Benchmark."""
        return cast(str, self.entries[index]["tag"])

    def requirements(self, index: int) -> list[str]:
        """See Benchmark."""
        entry = self.entries[index]
        lines = [_in_words(required, entry["include"]) for required in entry["include"]]
        return lines + [f"fewer than {excluded['count']} {excluded['class']}" for excluded in entry.get("exclude", [])]

    def rules_of(self, index: int) -> Any:
        """See Benchmark."""
        return self.entries[index]

    def outcome(self, row: dict) -> tuple[bool, str, list[str], list[Box]]:
        """See Benchmark."""
        boxes = [
            Box(tuple(found["box"]), f"{found.get('color', '')} {found['class']} {found['confidence']:.2f}".strip())
            for found in row["objects"]
        ]
        return row["correct"], "correct" if row["correct"] else "wrong", row["reasons"], boxes


def _row(entry: dict, sample: Sample, detections: list[Detection], detector: Detector) -> dict:
    colours: dict[int, str] = {}

    def colour_of(detection: Detection) -> str:
        colours[id(detection)] = detector.colour(sample.pixels, detection)
        return colours[id(detection)]

    verdict = judge(entry, detections, colour_of)
    objects = [
        {"class": found.label, "confidence": round(found.confidence, 4), "box": found.box}
        | ({"color": colours[id(found)]} if id(found) in colours else {})
        for group in verdict.objects.values()
        for found in group
    ]
    return {
        "filename": sample.name,
        "tag": entry["tag"],
        "prompt": entry["prompt"],
        "correct": verdict.correct,
        "reasons": verdict.reasons,
        "objects": objects,
    }


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _in_words(required: dict, include: list[dict]) -> str:
    words = f"{required['count']} {required.get('color', '')} {required['class']}".replace("  ", " ")
    if "position" in required:
        relation, target = required["position"]
        words += f", {relation} the {include[target]['class']}"
    return words
