"""What a run shows on Weights & Biases beside its metrics: sample grids, and evaluations as tables."""

import json
from html import escape
from pathlib import Path
from typing import Any

import wandb


def media(folder: Path, step: int) -> dict[str, Any]:
    """The pictures and tables that a step has left in the run's folder, by name; empty if it has left none.

    A table has a row for each image of an evaluation, and of what is known of it all that is a number or a text. It is
    HTML: a table of Weights & Biases is an artifact, for which the run would wait for the server.
    """
    found: dict[str, Any] = {}
    picture = folder / "samples" / f"step-{step:06d}.png"
    if picture.is_file():
        found["samples"] = wandb.Image(str(picture))
    results = folder / "evaluations" / f"step-{step:06d}" / "results.jsonl"
    if results.is_file():
        rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        found["evaluation"] = wandb.Html(_table(rows))
    return found


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row if isinstance(row[name], str | int | float)))
    lines = [_line("th", names), *(_line("td", [row.get(name, "") for name in names]) for row in rows)]
    return "<table>" + "".join(lines) + "</table>"


def _line(cell: str, values: list[Any]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(str(value))}</{cell}>" for value in values) + "</tr>"
