"""What a run has written so far: its metrics, its configuration, and whether its checkpoints fit the one of now."""

import json
from pathlib import Path
from typing import Any

import yaml

from simplear_rl.config.stages import GrpoConfig, StageConfig
from simplear_rl.errors import UserError


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Rows of a metrics file; none if there is no file. A last line that was cut off is left out.

    Raises:
        UserError: another line is no row of metrics; names it.
    """
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: expected the metrics of a step, found {line[:60]!r}: mend or remove the line"
            ) from error
        rows.append(row)
    return rows


def read_config(file: Path) -> dict[str, Any]:
    """The configuration of a run that is to be continued; empty if the file is gone, or a crash left nothing in it."""
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        values = yaml.safe_load(text) if text.strip("\0\n ") else {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not a readable YAML file; without it the run continues as well: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected keys and values, found {type(values).__name__}: remove it and continue")
    return values


def require_same_learner(before: dict[str, Any], config: StageConfig) -> None:
    """Raise UserError if the last checkpoint's optimizer state, or its schedule, does not fit the learner of now."""
    learner = config.learner
    fixed = [f"learner.{key}" for key in ("zero_stage", "dtype", *(["actors.count"] if learner.zero_stage else []))]
    if learner.optimizer.schedule != "constant" or learner.optimizer.warmup_steps:  # counted in optimizer steps
        fixed += ["algorithm.minibatches", "algorithm.updates_per_batch"] if isinstance(config, GrpoConfig) else []
    for key in fixed:
        then: Any = before
        now: Any = config
        for part in key.split("."):
            then, now = then.get(part) if isinstance(then, dict) else None, getattr(now, part)
        if then is not None and then != now:
            raise UserError(
                f"{key}: {now}, but the checkpoints of {config.run} were written with {then} and cannot be continued "
                f"otherwise: set {key}={then}, or choose another `run`"
            )
