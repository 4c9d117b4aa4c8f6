"""The GenEval rules (Ghosh et al., arXiv 2310.11513; evaluate_images.py of djghosh13/geneval), without any model.

A prompt's metadata states what its image must hold: `include` and `exclude` lists of {class, count} with an optional
`color` and `position` ([relation, index of the target requirement]). A detector says what the image holds.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from simplear_rl.vision.detection import Detection

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16  # per class
POSITION_MARGIN = 0.1
REWARD_IS_METRIC = (
    "Warning: the reward is GenEval's own verdict, and so is the metric of the benchmarks geneval and shapes. Their "
    "scores say how well the policy learned the reward; they are no independent measure of it."
)


@dataclass(frozen=True)
class Verdict:
    """Whether an image shows what was asked, what it lacks, and the objects that counted, by class."""

    correct: bool
    reasons: list[str]
    objects: dict[str, list[Detection]]


def judge(metadata: dict, detections: Iterable[Detection], colour_of: Callable[[Detection], str]) -> Verdict:
    """Judge one image.

    Args:
        metadata: `tag`, `include` and perhaps `exclude`, as in GenEval's metadata file.
        detections: of any confidence; the thresholds are applied here.
        colour_of: called only for objects whose requirement names a colour.
    """
    found = _found(metadata, detections)
    reasons = [problem for problem in _problems(metadata, found, colour_of) if problem]
    return Verdict(not reasons, reasons, found)


def partial_credit(metadata: dict, detections: Iterable[Detection], colour_of: Callable[[Detection], str]) -> float:
    """Share of the requirements that an image meets, from 0 to 1; exactly 1 where `judge` says correct.

    An entry of `include` is one requirement (enough objects of its class), with `color` one more (enough of them have
    it), with `position` one more (the relation holds). An entry of `exclude` is one. All count alike. Within an entry
    each builds on the one before: where that fails, so do those that follow, and every relation to its objects.

    Arguments as for `judge`; the metadata has at least one requirement.
    """
    problems = list(_problems(metadata, _found(metadata, detections), colour_of))
    return problems.count(None) / len(problems)


def _found(metadata: dict, detections: Iterable[Detection]) -> dict[str, list[Detection]]:
    """The detections that count, by class."""
    return _by_class(detections, COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD)


def _problems(
    metadata: dict, found: dict[str, list[Detection]], colour_of: Callable[[Detection], str]
) -> Iterator[str | None]:
    """For each requirement what is wrong: None if it is met, "" if one that it builds on is not."""
    matched: list[list[Detection] | None] = []
    for required in metadata["include"]:
        objects = found.get(required["class"], [])[: required["count"]]
        problem = _missing(required, objects)
        yield problem
        if "color" in required:
            problem = _miscoloured(required, objects, colour_of) if problem is None else ""
            yield problem
        if "position" in required:
            relation, target = required["position"]
            problem = _misplaced(required["class"], objects, relation, matched[target]) if problem is None else ""
            yield problem
        # A requirement that failed cannot be the target of a relation.
        matched.append(objects if problem is None else None)
    for excluded in metadata.get("exclude", []):
        number = len(found.get(excluded["class"], []))
        too_many = number >= excluded["count"]
        yield f"expected {excluded['class']}<{excluded['count']}, found {number}" if too_many else None


def _by_class(detections: Iterable[Detection], threshold: float) -> dict[str, list[Detection]]:
    """Detections above the threshold per class, the most confident first.

    The official script compares float32 with float32, so a confidence of 0.3 in float32, as a float 0.3 + 1e-8, is not.
    """
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.confidence):
        if np.float32(detection.confidence) > np.float32(threshold):
            found.setdefault(detection.label, []).append(detection)
    return {label: objects[:MAX_OBJECTS] for label, objects in found.items()}


def _missing(required: dict, objects: list[Detection]) -> str | None:
    name, count = required["class"], required["count"]
    return f"expected {name}>={count}, found {len(objects)}" if len(objects) < count else None


def _miscoloured(required: dict, objects: list[Detection], colour_of: Callable[[Detection], str]) -> str | None:
    name, count, colours = required["class"], required["count"], [colour_of(detection) for detection in objects]
    if colours.count(required["color"]) < count:
        return f"expected {required['color']} {name}>={count}, found {', '.join(colours)}"
    return None


def _misplaced(name: str, objects: list[Detection], relation: str, targets: list[Detection] | None) -> str | None:
    if targets is None:
        return f"expected {name} {relation} a target that was not found"
    for a in objects:
        for b in targets:
            relations = relative_position(a.box, b.box)
            if relation not in relations:
                return f"expected {name} {relation} target, found {' and '.join(sorted(relations)) or 'no relation'}"
    return None


def relative_position(box_a: tuple[float, ...], box_b: tuple[float, ...]) -> set[str]:
    """Where A lies as seen from B: a subset of "left of", "right of", "above", "below".

    The offset of the centres is shortened by a tenth of both boxes' sizes; a direction counts when its share of the
    unshortened offset exceeds one half.
    """
    a, b = np.array(box_a, float).reshape(2, 2), np.array(box_b, float).reshape(2, 2)
    offset = a.mean(axis=0) - b.mean(axis=0)
    margin = POSITION_MARGIN * ((a[1] - a[0]) + (b[1] - b[0]))
    revised = np.sign(offset) * np.maximum(np.abs(offset) - margin, 0)
    if (np.abs(revised) < 1e-3).all():
        return set()
    x, y = revised / np.linalg.norm(offset)
    directions = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in directions.items() if holds}


def scores(results: list[dict]) -> dict[str, float]:
    """Accuracy per tag over its images, and "overall": the unweighted mean over the tags.

    `results` are rows with `tag` and `correct`. Raises ValueError if a tag has no image.
    """
    by_tag = {tag: [row["correct"] for row in results if row["tag"] == tag] for tag in TAGS}
    empty = [tag for tag, outcomes in by_tag.items() if not outcomes]
    if empty:
        raise ValueError(f"no images of {', '.join(empty)}")
    accuracy = {tag: float(np.mean(outcomes)) for tag, outcomes in by_tag.items()}
    return accuracy | {"overall": float(np.mean(list(accuracy.values())))}


def confidence_intervals(results: list[dict], seed: int, resamples: int = 2000) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `scores`: prompts (`index`) are resampled within their tag, with all their images."""
    random = np.random.default_rng(seed)
    samples = {}
    for tag in TAGS:
        outcomes: dict[int, list[bool]] = {}
        for row in results:
            if row["tag"] == tag:
                outcomes.setdefault(row["index"], []).append(row["correct"])
        prompts = np.array([(sum(images), len(images)) for images in outcomes.values()], float)
        correct, number = random.choice(prompts, (resamples, len(prompts))).sum(axis=1).T
        samples[tag] = correct / number
    samples["overall"] = np.mean(list(samples.values()), axis=0)
    bounds = {name: np.quantile(values, [0.025, 0.975]) for name, values in samples.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
