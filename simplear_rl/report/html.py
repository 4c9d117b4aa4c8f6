"""The demo's report: one self-contained HTML page made from the files below a root folder."""

import base64
import io
import json
import math
import re
import textwrap
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image

from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC, TAGS
from simplear_rl.report.grids import grid_figure
from simplear_rl.run.history import read_metrics

CURVES = {
    "pretrain": {"loss": "cross-entropy (nats per token)"},
    "sft": {"loss": "cross-entropy (nats per token)"},
    "grpo": {
        "reward": "reward (mean of the step's samples)",
        "evaluation_overall": "score on a part of the held-out prompts",
        "kl": "KL to the reference (nats per token)",
        "mismatch_max": "largest |rollout - learner| log-prob",
        "ratio_max": "largest ratio",
        "grad_norm": "gradient norm",
        "reward_std_in_group": "spread of rewards within a group",
    },
}


def write_report(root: Path, stages: Sequence[str], guidance_scale: float) -> Path:
    """Write `root`/report.html from the runs and evaluations of `stages`; returns its path."""
    evaluations = _evaluations(root, stages)
    rewards = _reward_types(root / stages[-1])
    template = jinja2.Template(
        resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"), autoescape=True
    )
    page = template.render(
        rewards=rewards,
        warning=REWARD_IS_METRIC if "geneval" in rewards else None,
        tags=[*TAGS, "overall"],
        evaluations=evaluations,
        scores=_scores_figure({stage: evaluations[stage] for stage in stages}),
        guidance_scale=guidance_scale,
        score_curve=_score_curve_figure(root, stages),
        curves={stage: _curves_figure(root / stage / "metrics.jsonl", CURVES[stage]) for stage in stages},
        samples=_samples_figure(root, stages),
        timings=_timings(root / "timings.jsonl"),
    )
    file = root / "report.html"
    file.write_text(page, encoding="utf-8")
    return file


def summary(root: Path, stages: Sequence[str]) -> str:
    """The score table for the terminal."""
    evaluations = _evaluations(root, stages)
    lines = [f"{'':14s}" + "".join(f"{name:>17s}" for name in evaluations)]
    for tag in (*TAGS, "overall"):
        lines.append(f"{tag:14s}" + "".join(f"{values['scores'][tag]:17.3f}" for values in evaluations.values()))
    return "\n".join(lines)


def _reward_types(run: Path) -> list[str]:
    """What a GRPO run was rewarded with."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return [model["type"] for model in config["reward"]["models"]]


def _evaluations(root: Path, stages: Sequence[str]) -> dict[str, dict]:
    """What each stage scored, unguided and guided."""
    names = [name for stage in stages for name in (stage, f"{stage}-guided")]
    return {
        name: json.loads((root / "evaluation" / name / "scores.json").read_text(encoding="utf-8")) for name in names
    }


def _inline(figure: Figure) -> str:
    """The figure as the text of an <img> source."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _scores_figure(evaluations: dict[str, dict]) -> str:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    tags = [*TAGS, "overall"]
    width = 0.8 / len(evaluations)
    for s, (stage, evaluation) in enumerate(evaluations.items()):
        values = np.array([evaluation["scores"][tag] for tag in tags])
        bounds = np.array([evaluation["confidence_intervals"][tag] for tag in tags]).T
        errors = np.abs(bounds - values)
        axes.bar(np.arange(len(tags)) + s * width, values, width, yerr=errors, capsize=2, label=stage)
    axes.set_xticks(np.arange(len(tags)) + 0.4 - width / 2, tags)
    axes.set(ylabel="accuracy", ylim=(0, 1))
    axes.legend(frameon=False)
    return _inline(figure)


def _curves_figure(file: Path, names: dict[str, str]) -> str:
    rows = read_metrics(file)
    columns = 4 if len(names) > 3 else len(names)
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * lines), layout="constrained")
    for place, (name, label) in enumerate(names.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        logged = [(row["step"], row[name]) for row in rows if name in row]  # an evaluation is not of every step
        axes.plot(*zip(*logged, strict=True), linewidth=1, marker="." if len(logged) < len(rows) else "")
        axes.set_title(label, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
    return _inline(figure)


def _score_curve_figure(root: Path, stages: Sequence[str]) -> str:
    """Scores from stage to stage, with the checkpoints on the way to the last one."""
    evaluations = root / "evaluation"
    names = [*stages[:-1], *sorted(path.name for path in evaluations.glob(f"{stages[-1]}-step-*")), stages[-1]]
    found = [json.loads((evaluations / name / "scores.json").read_text(encoding="utf-8")) for name in names]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots()
    labels = [re.sub(r"-step-0*", "\nstep ", name) for name in names]
    for tag in TAGS:
        axes.plot(labels, [evaluation["scores"][tag] for evaluation in found], linewidth=1, alpha=0.6, label=tag)
    overall = [evaluation["scores"]["overall"] for evaluation in found]
    low, high = np.array([evaluation["confidence_intervals"]["overall"] for evaluation in found]).T
    axes.errorbar(
        labels, overall, yerr=[overall - low, high - overall], color="black", capsize=3, linewidth=2, label="overall"
    )
    axes.set(ylabel="accuracy", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return _inline(figure)


def _samples_figure(root: Path, stages: Sequence[str], per_tag: int = 2) -> str:
    """The first prompts of each tag, one per column, and what each stage drew for them."""
    folders = {stage: root / "evaluation" / stage for stage in stages}
    results = {
        stage: [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        for stage, folder in folders.items()
    }
    tags = [row["tag"] for row in results[stages[0]]]
    shown = [i for tag in TAGS for i in range(tags.index(tag), tags.index(tag) + per_tag)]
    rows: list[tuple[str, np.ndarray]] = []
    titles: list[list[str]] = []
    for stage, folder in folders.items():
        outcomes = [results[stage][i] for i in shown]
        rows.append((stage, np.stack([np.asarray(Image.open(folder / outcome["filename"])) for outcome in outcomes])))
        verdicts = ["correct" if outcome["correct"] else "wrong" for outcome in outcomes]
        prompts = ["" if titles else textwrap.fill(outcome["prompt"], 13) + "\n" for outcome in outcomes]
        titles.append([prompt + verdict for prompt, verdict in zip(prompts, verdicts, strict=True)])
    return _inline(grid_figure(rows, titles))


def _timings(file: Path) -> dict[str, float]:
    """Seconds per phase, summed over restarts."""
    seconds: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        seconds[entry["phase"]] = seconds.get(entry["phase"], 0) + entry["seconds"]
    return seconds
