"""What a report reads of a run folder. Anything can be damaged there: what cannot be read is named on the page."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from simplear_rl.errors import UserError
from simplear_rl.report.samples import StepSamples, read_samples
from simplear_rl.run.events import FILE, read_events
from simplear_rl.run.history import read_config, read_metrics
from simplear_rl.run.lock import silent_for

Result = TypeVar("Result")
METRICS, CONFIG = "metrics.jsonl", "config.yaml"
STAGES = ("pretrain", "sft", "grpo")  # how those of one root are ordered
QUIET = 600.0  # seconds without a sign of life, after which a run is taken for stopped
READ_ERRORS = (
    OSError,
    ValueError,
    OverflowError,
    KeyError,
    TypeError,
    AttributeError,
    SyntaxError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's folder: its scores, and a row for each image."""

    name: str
    folder: Path
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rows: list[dict]

    def by_prompt(self) -> dict[str, list[dict]]:
        """The rows of each prompt."""
        found: dict[str, list[dict]] = {}
        for row in self.rows:
            found.setdefault(row["prompt"], []).append(row)
        return found


@dataclass
class RunRead:
    """A run folder."""

    name: str
    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, float]]
    events: list[dict]
    grids: dict[int, Path]  # pictures of samples, by step
    samples: list[StepSamples]
    evaluations: list[Evaluated]
    problems: list[str] = field(default_factory=list)  # what could not be read
    ended: bool = False  # by those who write this report

    @property
    def kind(self) -> str:
        """What is compared with what: runs of one kind share their charts."""
        algorithm = self.config.get("algorithm")
        if isinstance(algorithm, dict) and "label_smoothing" in algorithm:
            return "DPO"
        if "rollout" in self.config:
            return "GRPO"
        return "Pretraining and SFT" if "data" in self.config else "Run"

    @property
    def images_per_step(self) -> int | None:
        """Of runs whose rows do not count them."""
        size = _count(_batch_size(self.config))
        return 2 * size if size and self.kind == "DPO" else size  # a sample of DPO is a pair

    @property
    def planned(self) -> int | None:
        """Steps of the whole run."""
        return _count(self.config.get("steps"))

    @property
    def state(self) -> str:
        """Whether it is finished, running or stopped, as far as its files tell: a process that works there locks it."""
        if self.rows and self.planned and self.rows[-1]["step"] >= self.planned:
            return "finished"
        return "stopped" if self.ended or silent_for(self.folder) > QUIET else "running"


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders that are meant: each is one itself, or the root of some.

    Raises:
        UserError: one is neither; all of them are named.
    """
    found, bad = list[Path](), list[str]()
    for folder in folders:
        below = [path.parent for path in folder.glob(f"*/{METRICS}")] if folder.is_dir() else []
        if (folder / METRICS).is_file():
            found.append(folder)
        elif below:
            found += sorted(below, key=lambda run: (STAGES.index(run.name) if run.name in STAGES else 99, run.name))
        else:
            there = "no such folder" if not folder.exists() else "a file" if folder.is_file() else f"no {METRICS} there"
            bad.append(f"{folder}: no run ({there}): expected a run folder, or one with run folders in it")
    if bad:
        raise UserError("\n".join(bad))
    return list(dict.fromkeys(found))


def read_run(folder: Path, name: str) -> RunRead:
    """A run folder, as it is now.

    Raises:
        UserError: its metrics or its configuration are damaged.
    """
    config, rows = read_config(folder / CONFIG), read_metrics(folder / METRICS)
    run = RunRead(name, folder, config, [], [], {}, [], [])
    for key, value in ("steps", config.get("steps")), ("data.batch_size", _batch_size(config)):
        if value is not None and _count(value) is None:
            run.problems.append(f"{folder / CONFIG}: {key}: expected a number, found {value!r}")
    run.rows, problems = _numbers(folder / METRICS, rows)
    run.events = _attempt(problems, folder / FILE, lambda file: read_events(file.parent)) or []
    run.problems += problems
    for file in sorted((folder / "samples").glob("step-*.png")):
        if step := _attempt(run.problems, file, lambda path: int(path.stem.removeprefix("step-"))):
            run.grids[step] = file
    for file in sorted((folder / "samples").glob("step-*.json")):
        if samples := _attempt(run.problems, file, read_samples):
            run.samples.append(samples)
    run.evaluations, problems = read_evaluations(folder / "evaluations")
    run.problems += problems
    return run


def read_evaluations(folder: Path) -> tuple[list[Evaluated], list[str]]:
    """The finished evaluations in a folder, by name, and a line for each that cannot be read."""
    problems: list[str] = []
    files = sorted(folder.glob("*/scores.json"))
    found = [_attempt(problems, file.parent, _evaluated) for file in files]
    return [evaluation for evaluation in found if evaluation], problems


def _batch_size(config: dict[str, Any]) -> Any:
    data = config.get("data")
    return data.get("batch_size") if isinstance(data, dict) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _numbers(file: Path, rows: Sequence[dict]) -> tuple[list[dict[str, float]], list[str]]:
    """Rows of metrics without what is no number there, and a line for the first such value of each metric.

    Only metrics may be NaN or infinite; steps, seconds and numbers of samples add up along the page's axes.
    """
    found, bad = list[dict[str, float]](), dict[str, str]()
    for row in rows:
        kept = {name: value for name, value in row.items() if _is_number(name, value)}
        for name in row.keys() - kept.keys():
            value = repr(row[name])[:60]
            bad.setdefault(name, f"{file}: {name} of step {row['step']}: expected a number, found {value}")
        if "step" in kept:
            found.append(kept)
    return found, [bad[name] for name in sorted(bad)]


def _is_number(name: str, value: Any) -> bool:
    try:
        adds_up = name in ("step", "samples") or name.endswith("_seconds")
        return isinstance(value, int | float) and (math.isfinite(value) or not adds_up)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _evaluated(folder: Path) -> Evaluated:
    summary = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if not all("prompt" in row and "filename" in row for row in rows):
        raise ValueError("rows without `prompt` or `filename`")
    scores = {name: float(value) for name, value in summary["scores"].items()}
    bounds = {name: (float(low), float(high)) for name, (low, high) in summary["confidence_intervals"].items()}
    found = Evaluated(folder.name, folder, scores, bounds, rows)
    for of_prompt in found.by_prompt().values():
        value_of(of_prompt)  # raises an error here, where it is named
    return found


def value_of(rows: Sequence[dict]) -> float:
    """Mean over a prompt's images of what the benchmark gave them, from 0 to 1; NaN where it gave nothing."""
    values = [row["correct"] if "correct" in row else row.get("score") for row in rows]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def _attempt(problems: list[str], path: Path, read: Callable[[Path], Result]) -> Result | None:
    """What `read` makes of a path; None, and a line among the problems, if it cannot."""
    try:
        return read(path)
    except READ_ERRORS as error:
        problems.append(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}")
        return None
