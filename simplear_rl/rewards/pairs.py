"""Pairs of images of the same prompt, one of each side, with their scores: as a table, and as a page."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simplear_rl.algorithms.paired import Comparison, compare
from simplear_rl.errors import UserError, first_of
from simplear_rl.files import rendered, write_text
from simplear_rl.rewards.scoring import ScoredImage

JUDGED_BY = ("benchmark", "rules", "detector", "judge", "prompts_sha256")  # of an evaluation's config.yaml
EVALUATION, POLICY, IMAGES = "an evaluation", "a policy", "images"


@dataclass(frozen=True)
class Scored:
    """An image of one side."""

    file: Path
    prompt: str
    scores: Mapping[str, float]  # by name, the one that orders the page first; NaN: none


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt."""

    key: str  # what both are called in their folders
    a: Scored
    b: Scored

    def difference(self, name: str) -> float:
        """B's score above A's; NaN where one has none."""
        return self.b.scores.get(name, np.nan) - self.a.scores.get(name, np.nan)


def kind_of(path: Path) -> str:
    """What is to be compared there. Raises UserError."""
    if (path / "results.jsonl").is_file():
        return EVALUATION
    if (path / "config.json").is_file():
        return POLICY
    if not path.is_dir():
        raise UserError(f"{path}: expected a policy, the folder of an evaluation, or a folder of images")
    return IMAGES


def of_images(folder: Path, scored: Sequence[ScoredImage]) -> dict[str, Scored]:
    """The images of a folder, by their place in it."""
    return {
        str(image.source.file.relative_to(folder)): Scored(
            image.source.file, image.source.prompt, {"total": image.total} | image.rewards
        )
        for image in scored
    }


def of_evaluation(folder: Path) -> dict[str, Scored]:
    """The images of an evaluation, by prompt and number; its verdict on one is 1 or 0, or a score from 0 to 1.

    Raises:
        UserError: its rows are damaged.
    """
    file = folder / "results.jsonl"
    found: dict[str, Scored] = {}
    numbers = Counter[int]()
    try:
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            value = row["correct"] if "correct" in row else row["score"]
            score = {"score": np.nan if value is None else float(value)}
            sample = row.get("sample", numbers[row["index"]])  # older versions counted none
            found[f"{row['index']}/{sample}"] = Scored(folder / row["filename"], row["prompt"], score)
            numbers[row["index"]] += 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: expected the rows of an evaluation: {error!r}") from error
    return found


def require_same_judge(folders: Sequence[Path]) -> None:
    """Raise UserError, naming the difference, if two evaluations were not judged by the same rules and models."""
    try:
        one, other = (_judged_by(folder) for folder in folders)
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"what these evaluations were judged by cannot be read: {error}") from error
    if different := [f"  {key}: {one[key]}, {other[key]}" for key in JUDGED_BY if one[key] != other[key]]:
        lines = "\n".join(different)
        raise UserError(f"{folders[0]} and {folders[1]} were judged by other rules, models or questions:\n{lines}")


def _judged_by(folder: Path) -> dict[str, Any]:
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    found = {key: settings.get(key) for key in JUDGED_BY}
    for model in found["detector"], found["judge"]:
        if isinstance(model, dict):
            model.pop("batch_size", None)  # changes no verdict
    return found


def pair_up(a: Mapping[str, Scored], b: Mapping[str, Scored]) -> list[Pair]:
    """The images that are called the same.

    Raises:
        UserError: one has no partner, or another prompt than its partner; names them.
    """
    faults = [f"{a[key].file}: no partner on the other side" for key in a if key not in b]
    faults += [f"{b[key].file}: no partner on the other side" for key in b if key not in a]
    pairs = [Pair(key, a[key], b[key]) for key in a if key in b]
    for pair in pairs:
        if pair.a.prompt != pair.b.prompt:
            faults.append(f"{pair.b.file}: drawn for {pair.b.prompt!r}, its partner for {pair.a.prompt!r}")
    if faults:
        raise UserError("\n".join(["not the same prompts and images on both sides:", *first_of(faults)]))
    if not pairs:
        raise UserError("no images to compare")
    return pairs


def names_of(pairs: Sequence[Pair]) -> list[str]:
    """The names of all scores; an image that could not be scored has fewer of them."""
    return list(dict.fromkeys(name for pair in pairs for side in (pair.a, pair.b) for name in side.scores))


def comparisons(pairs: Sequence[Pair]) -> dict[str, tuple[Comparison, int]]:
    """Of every score that both sides have: how B fares, and how many pairs lack it."""
    found = {}
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(pair.a.prompt for pair in pairs))}
    for name in names_of(pairs):
        known = [pair for pair in pairs if np.isfinite(pair.difference(name))]
        if known:
            values = np.array([[pair.a.scores[name], pair.b.scores[name]] for pair in known])
            groups = np.array([prompts[pair.a.prompt] for pair in known])
            found[name] = compare(values[:, 0], values[:, 1], groups), len(pairs) - len(known)
    if not found:
        raise UserError("the two sides have no score in common")
    return found


def write_table(file: Path, pairs: Sequence[Pair]) -> None:
    """A row for each pair, in the order in which they were found."""
    names = names_of(pairs)
    with open(file, "w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["a", "b", "prompt", *(f"{side}_{name}" for name in names for side in "ab")])
        for pair in pairs:
            values = [side.scores.get(name, np.nan) for name in names for side in (pair.a, pair.b)]
            cells = ["" if np.isnan(value) else f"{value:.7g}" for value in values]
            writer.writerow([pair.a.file, pair.b.file, pair.a.prompt, *cells])


def write_page(
    file: Path, pairs: Sequence[Pair], found: Mapping[str, tuple[Comparison, int]], titles: Sequence[str]
) -> None:
    """All pairs, those with the largest gain of B first, by the first score; those without it come last."""
    name = next(iter(found))
    ordered = sorted(pairs, key=lambda pair: (np.isnan(pair.difference(name)), -pair.difference(name)))
    shown = [
        {
            "pair": pair,
            "difference": pair.difference(name),
            "files": [os.path.relpath(_without_part(side.file), file.parent) for side in (pair.a, pair.b)],
        }
        for pair in ordered
    ]
    values = {"shown": shown, "found": found, "name": name, "titles": titles, "nan": np.nan}
    write_text(file, rendered(__package__, "pairs.html.jinja", **values))


def _without_part(file: Path) -> Path:
    """The file of an image that is one of several in it."""
    return Path(re.sub(r"#\d+$", "", str(file)))
