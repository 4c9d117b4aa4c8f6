"""What a run shows on Weights & Biases beside its metrics: sample grids, and evaluations as tables."""

import json
from pathlib import Path
from typing import Any

import wandb


def media(folder: Path, step: int) -> dict[str, Any]:
    """The pictures and tables that a step has left in the run's folder, by name; empty if it has left none.

    A table has a row for each image of an evaluation, and of what is known of it all that is a number or a text.
    """
    found: dict[str, Any] = {}
    picture = folder / "samples" / f"step-{step:06d}.png"
    if picture.is_file():
        found["samples"] = wandb.Image(str(picture))
    results = folder / "evaluations" / f"step-{step:06d}" / "results.jsonl"
    if results.is_file():
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        names = list(dict.fromkeys(name for row in rows for name in row if isinstance(row[name], str | int | float)))
        found["evaluation"] = wandb.Table(columns=names, data=[[row.get(name) for name in names] for row in rows])
    return found
