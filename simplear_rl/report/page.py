"""The report: one self-contained HTML page of one run or several side by side, made from what they have written."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from simplear_rl.benchmarks.geneval2 import REWARD_IS_METRIC
from simplear_rl.files import rendered, write_text
from simplear_rl.report.evaluations import gains, scores_of
from simplear_rl.report.pictures import GRID_WIDTH, SMALL, inline, inline_file
from simplear_rl.report.runs import READ_ERRORS, RunRead, find_runs, read_evaluations, read_run
from simplear_rl.report.series import (
    POINTS,
    axes,
    curves,
    first_and_last,
    histogram,
    narrowed,
    parts_of,
    tidy,
    time_per_phase,
)

# The first charts, with what they show; scores and losses on held-out data stand after the first.
LABELS = {
    "reward": "reward, mean of the step's samples",
    "loss": "loss",
    "diversity": "diversity of a prompt's images",
    "kl": "KL to the reference, nats per token",
    "entropy": "entropy of a code, nats",
    "mismatch_max": "largest |rollout - learner| log-prob",
    "mismatch_mean": "mean |rollout - learner| log-prob",
    "correction_ess": "effective sample size, as a share",
    "reward_std_in_group": "spread of rewards within a group",
    "zero_advantage_groups": "share of groups with equal rewards",
    "ratio_max": "largest ratio of the last update",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens per second",
}
LOSSES = {"Pretraining and SFT": "cross-entropy, nats per token", "DPO": "loss of the preferences"}
HELD_OUT = ("evaluation_", "validation_")
SUMMARY = ("reward", "loss", "validation_loss", "evaluation_overall", "evaluation_total", "kl", "diversity")
FRAMES, TILES = 10, 8
EVALUATIONS, REPORT = "evaluation", "report.html"


def write_report(folders: Sequence[Path], file: Path | None = None, ended: bool = False) -> Path:
    """Write the page of some runs, or roots of runs, to `file`, by default report.html in the only folder.

    `ended`: none of them works any more, whatever their folders tell.

    Raises:
        UserError: a folder is no run, or its metrics are damaged; or the page cannot be written.
    """
    file = file or folders[0] / REPORT
    write_text(file, render(folders, ended))
    return file


def render(folders: Sequence[Path], ended: bool = False) -> str:
    """The page as text. Raises UserError, see `write_report`."""
    paths = find_runs(folders)
    runs = [replace(read_run(path, name), ended=ended) for path, name in zip(paths, _names(paths), strict=True)]
    root = folders[0] if len(folders) == 1 and folders[0] != paths[0] else None
    evaluated, problems = read_evaluations(root / EVALUATIONS) if root else ([], [])
    kinds = list(dict.fromkeys(run.kind for run in runs))
    scores = scores_of(evaluated, [run.name for run in runs]) if evaluated else None
    frames = [_frames(run) for run in runs]
    data: dict[str, Any] = {
        "runs": [_run_data(run) for run in runs],
        "phases": [time_per_phase(run.rows) for run in runs],
        "histograms": [_histogram(run) for run in runs],
        "scores": scores and scores.data,
        "frames": [[source for _, source in shown] for shown in frames],
    }
    return rendered(
        __package__,
        "page.html.jinja",
        title=root.name if root else ", ".join(run.name for run in runs),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=_own("page.css"),
        script=_own("charts.js"),
        runs=runs,
        live=any(run.state == "running" for run in runs),
        summaries=[_summary(run) for run in runs],
        summary_names=[name for name in SUMMARY if any(name in row for run in runs for row in run.rows)],
        warnings=_warnings(runs),
        thinned=any(len(run.rows) > POINTS for run in runs),
        charts=_charts(runs, kinds),
        axes=[name for name in ("steps", "images", "seconds") if all(name in run["axes"] for run in data["runs"])],
        frames=frames,
        tiles=[_tiles(run) for run in runs],
        gains=[gains(run) for run in runs],
        scores=scores,
        timings=_timings(root / "timings.jsonl") if root else {},
        differences=_differences(runs),
        configs=[yaml.safe_dump(run.config, sort_keys=False) for run in runs],
        problems=list(dict.fromkeys([problem for run in runs for problem in run.problems] + problems)),
        data=data,
    )


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    whole = [path.absolute().parts for path in paths]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            break
    return names


def _run_data(run: RunRead) -> dict[str, Any]:
    names = sorted({name for row in run.rows for name in row if name != "step" and not name.endswith("_seconds")})
    parts = parts_of(len(run.rows), POINTS)
    every = axes(run.rows, run.images_per_step)
    return {
        "name": run.name,
        "kind": run.kind,
        "axes": {name: [tidy(values[part.stop - 1]) for part in parts] for name, values in every.items()},
        "curves": curves(run.rows, names),
        "events": [{"step": event["step"], "text": event["text"]} for event in run.events],
    }


def _charts(runs: Sequence[RunRead], kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Of each kind of run the charts that stand first, and all others, as (metric, label)."""
    sections = []
    for kind in kinds:
        rows = [row for run in runs if run.kind == kind for row in run.rows]
        names = {name for row in rows for name in row if name != "step" and not name.endswith("_seconds")}
        held_out = sorted(
            (name for name in names if name.startswith(HELD_OUT)), key=lambda name: (name not in SUMMARY, name)
        )
        known = [name for name in LABELS if name in names]
        first = known[:1] + held_out + known[1:]
        labels = LABELS | ({"loss": LOSSES[kind]} if kind in LOSSES else {})
        label = {name: labels.get(name, name.replace("_", " ")) for name in names}
        rest = sorted(names - set(first))
        sections.append({"kind": kind, "first": [(n, label[n]) for n in first], "rest": [(n, label[n]) for n in rest]})
    return sections


def _summary(run: RunRead) -> dict[str, Any]:
    found = axes(run.rows, run.images_per_step)
    last = {name: float(values[-1]) for name, values in found.items() if len(values)}
    return {
        "steps": f"{last.get('steps', 0):.0f}" + (f" of {run.planned}" if run.planned else ""),
        "images": f"{last['images']:,.0f}" if "images" in last else "",
        "time": _duration(last.get("seconds", 0.0)),
        "means": {name: first_and_last(run.rows, name) for name in SUMMARY},
    }


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02.0f}"


def _warnings(runs: Sequence[RunRead]) -> list[str]:
    found = [f"{run.name}: {warning}" for run in runs if (warning := narrowed(run.rows))]
    types = [(run.name, kind) for run in runs for kind in _rewards(run)]
    return found + [f"{name}: {REWARD_IS_METRIC[kind]}" for name, kind in types if kind in REWARD_IS_METRIC]


def _rewards(run: RunRead) -> list[str]:
    reward = run.config.get("reward")
    models = reward.get("models") if isinstance(reward, dict) else None
    return [str(model.get("type")) for model in models if isinstance(model, dict)] if isinstance(models, list) else []


def _frames(run: RunRead) -> list[tuple[int, str]]:
    """Pictures of samples by step, at most FRAMES of them: the first, the last, and some between."""
    steps = sorted(run.grids)
    chosen = sorted({steps[round(i)] for i in _spaced(len(steps), FRAMES)})
    frames = []
    for step in chosen:
        try:
            frames.append((step, inline_file(run.grids[step], GRID_WIDTH)))
        except READ_ERRORS as error:
            run.problems.append(f"{run.grids[step]}: cannot be read: {error}")
    return frames


def _spaced(number: int, limit: int) -> list[float]:
    if number <= limit:
        return list(map(float, range(number)))
    return [i * (number - 1) / (limit - 1) for i in range(limit)]


def _histogram(run: RunRead) -> dict[str, Any] | None:
    """Rewards of all samples of the first, a middle and the last step of which they are there."""
    chosen = sorted({round(i) for i in _spaced(len(run.samples), 3)})
    shown = [run.samples[i] for i in chosen]
    values = {f"step {s.step}": [reward for group in s.rewards for reward in group] for s in shown}
    finite = [reward for rewards in values.values() for reward in rewards if math.isfinite(reward)]
    return histogram(values) if finite else None


def _tiles(run: RunRead) -> dict[str, list[dict[str, Any]]]:
    """The best samples of all steps whose small images are there, the best and the worst of the last of them."""
    ranked = sorted(
        ((reward, samples, r, c) for samples in run.samples for r, c, reward in samples.with_images()),
        key=lambda found: -found[0],
    )
    last = [found for found in ranked if found[1] is run.samples[-1]]
    if not last:
        return {}
    step = run.samples[-1].step
    chosen = {
        "the highest rewards": ranked[:TILES],
        f"the highest of step {step}": last[:TILES],
        f"the lowest of step {step}": last[-TILES:],
    }
    tiles: dict[str, list[dict[str, Any]]] = {}
    for title, found in chosen.items():
        for reward, samples, r, c in found:
            try:
                source = inline(samples.image(r, c), SMALL)
            except READ_ERRORS as error:
                run.problems.append(f"{samples.sheet}: cannot be read: {error}")
                continue
            tile = {"source": source, "prompt": samples.prompts[r], "reward": reward, "step": samples.step}
            tiles.setdefault(title, []).append(tile)
    return tiles


def _timings(file: Path) -> dict[str, float]:
    """Seconds of the phases of a demo, summed over restarts; none without the file."""
    seconds: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError, KeyError, TypeError):  # a line that a full disk cut off
            entry = json.loads(line)
            seconds[entry["phase"]] = seconds.get(entry["phase"], 0) + entry["seconds"]
    return seconds


def _differences(runs: Sequence[RunRead]) -> dict[str, list[str]]:
    """Keys of the configurations whose values differ, with each run's value."""
    flat = [_flat(run.config) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key, "-") for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": str(value)}
        )
    return found
