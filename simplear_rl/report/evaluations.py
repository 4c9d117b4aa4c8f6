"""Evaluations in a report: scores side by side, the same prompts beside each other, gains and losses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplear_rl.report.pictures import of_row
from simplear_rl.report.runs import READ_ERRORS, Evaluated, RunRead, read_evaluations, value_of

PROMPTS, CHANGES = 12, 5


@dataclass(frozen=True)
class Scores:
    """Several evaluations: their names, a table of scores with intervals, data of a chart, and pictures."""

    names: list[str]
    table: dict[str, list[tuple[float, tuple[float, float] | None] | None]]  # by score, of each evaluation
    data: dict[str, Any]
    pictures: dict[str, list[tuple[str, bool | None] | None]]  # by prompt: image, and whether it is correct
    shown: list[str]  # evaluations that the pictures are of


def scores_of(evaluations: Sequence[Evaluated], runs: Sequence[str]) -> Scores:
    """Evaluations in the order of the runs that they are called after, the pictures those of these alone."""

    def order(evaluation: Evaluated) -> tuple[int, str]:
        places = [i for i, run in enumerate(runs) if evaluation.name.startswith(run)]
        return (places[-1] if places else len(runs), evaluation.name)

    ordered = sorted(evaluations, key=order)
    names = list(dict.fromkeys(name for evaluation in ordered for name in evaluation.scores))
    table: dict[str, list[tuple[float, tuple[float, float] | None] | None]] = {
        name: [(e.scores[name], e.intervals.get(name)) if name in e.scores else None for e in ordered] for name in names
    }
    shown = [evaluation for evaluation in ordered if evaluation.name in runs] or ordered[:4]
    data = {"names": names, "series": [{"name": e.name, "scores": e.scores, "intervals": e.intervals} for e in ordered]}
    return Scores([e.name for e in ordered], table, data, _pictures(shown), [e.name for e in shown])


def table(root: Path, runs: Sequence[str]) -> str:
    """The scores below `root` for a terminal."""
    found = scores_of(read_evaluations(root / "evaluation")[0], runs)
    lines = [f"{'':14s}" + "".join(f"{name:>18s}" for name in found.names)]
    for name, values in found.table.items():
        lines.append(f"{name:14s}" + "".join(f"{value[0]:18.3f}" if value else " " * 18 for value in values))
    return "\n".join(lines)


def _pictures(evaluations: Sequence[Evaluated]) -> dict[str, list[tuple[str, bool | None] | None]]:
    """The first image of some prompts that all evaluations have, evenly spaced."""
    found = [evaluation.by_prompt() for evaluation in evaluations]
    shared = [prompt for prompt in found[0] if all(prompt in rows for rows in found)]
    chosen = [shared[i * len(shared) // PROMPTS] for i in range(min(PROMPTS, len(shared)))] if shared else []
    return {
        prompt: [_picture(e.folder, rows[prompt][0]) for e, rows in zip(evaluations, found, strict=True)]
        for prompt in dict.fromkeys(chosen)
    }


def _picture(folder: Path, row: Mapping[str, Any]) -> tuple[str, bool | None] | None:
    try:
        return of_row(folder, dict(row)), row.get("correct")
    except READ_ERRORS:  # the images need not be kept
        return None


@dataclass(frozen=True)
class Change:
    """How a prompt fared early and late in a run."""

    prompt: str
    before: float
    after: float
    pictures: tuple[str | None, str | None]


@dataclass(frozen=True)
class Gains:
    """The prompts with the largest gain and the largest loss."""

    about: str
    gained: list[Change]
    lost: list[Change]


def gains(run: RunRead) -> Gains | None:
    """By the first and the last evaluation of the run; without two, by the rewards of prompts that came twice."""
    if len(run.evaluations) > 1:
        first, last = run.evaluations[0], run.evaluations[-1]
        about, changes = f"the evaluations {first.name} and {last.name}", _of_evaluations(first, last)
    elif changes := _of_samples(run):
        about = "the mean rewards of prompts among the samples, the first and the last time they came"
    else:
        return None
    ranked = sorted((c for c in changes if math.isfinite(c.after - c.before)), key=lambda c: c.before - c.after)
    gained = [change for change in ranked[:CHANGES] if change.after > change.before]
    lost = [change for change in ranked[::-1][:CHANGES] if change.after < change.before]
    return Gains(about, gained, lost)


def _of_evaluations(first: Evaluated, last: Evaluated) -> list[Change]:
    before, after = first.by_prompt(), last.by_prompt()
    values = {p: (value_of(before[p]), value_of(after[p])) for p in before if p in after}
    known = [prompt for prompt, pair in values.items() if all(map(math.isfinite, pair))]
    ranked = sorted(known, key=lambda prompt: values[prompt][0] - values[prompt][1])
    changes = []
    for prompt in dict.fromkeys(ranked[:CHANGES] + ranked[-CHANGES:]):
        pictures = [_picture(e.folder, rows[prompt][0]) for e, rows in ((first, before), (last, after))]
        early, late = (picture[0] if picture else None for picture in pictures)
        changes.append(Change(prompt, *values[prompt], (early, late)))
    return changes


def _of_samples(run: RunRead) -> list[Change]:
    seen: dict[str, list[float]] = {}
    for samples in run.samples:
        for prompt, rewards in zip(samples.prompts, samples.rewards, strict=True):
            seen.setdefault(prompt, []).append(sum(rewards) / len(rewards))
    return [Change(prompt, means[0], means[-1], (None, None)) for prompt, means in seen.items() if len(means) > 1]
