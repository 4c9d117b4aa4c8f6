"""A run directory: configuration, metrics, checkpoints, samples, and where a stopped run continues."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import wandb
import yaml
from tqdm import tqdm

from simplear_rl.config import StageConfig


def finished(config: StageConfig) -> bool:
    """Whether the run has done all its steps already; says so if it has."""
    done = checkpoints(config.run)
    if not done or _step(done[-1]) < config.steps:
        return False
    print(f"{config.run}: all {config.steps} steps are done; more `steps` or another `run` goes on")
    return True


class Run:
    """The folder `config.run`.

    config.yaml          the configuration as it ran
    metrics.jsonl        one line per step
    checkpoints/step-N/  `model` (Hugging Face format) and `learner` (optimizer state)
    final                link to the last step's model, once the run is finished
    samples/             pictures of samples
    """

    def __init__(self, stage: str, config: StageConfig):
        self.stage, self.config = stage, config
        self.folder = config.run
        self.samples = self.folder / "samples"
        self.samples.mkdir(parents=True, exist_ok=True)
        done = checkpoints(self.folder)
        self.last_checkpoint = done[-1] if done else None
        self.step = _step(done[-1]) if done else 0
        self._write_config(config.model_dump(mode="json"))
        self._keep_metrics_before(self.step)
        mode = _wandb_mode(config)
        self.wandb = wandb.init(
            project="simplear-rl",
            name=f"{stage}-{self.folder.name}",
            dir=self.folder,
            config=config.model_dump(mode="json"),
            mode=mode,
            settings=wandb.Settings(silent=mode != "online"),
        )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.wandb.finish()

    def steps(self) -> Iterator[int]:
        """The steps still to do, from 1 to config.steps, with a progress bar."""
        with tqdm(total=self.config.steps, initial=self.step, desc=self.stage, unit="step") as self.bar:
            while self.step < self.config.steps:
                yield self.step + 1
                self.bar.update()

    def log(self, step: int, metrics: dict[str, float], show: tuple[str, ...]) -> None:
        """Record the metrics of a finished step; `show` names those that the progress bar displays."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step} | metrics) + "\n")
        self.wandb.log(metrics, step=step)
        self.bar.set_postfix_str(", ".join(f"{name} {metrics[name]:.4g}" for name in show))
        self.step = step

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint follows the step just logged."""
        return self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps

    def checkpoint(self, save: Callable[[Path], None]) -> None:
        """Write a checkpoint of the step just logged, under a temporary name first: a partial one is never found."""
        folder = self.folder / "checkpoints" / f"step-{self.step:06d}"
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial)
        partial.rename(folder)
        for old in checkpoints(self.folder)[: -self.config.keep_checkpoints]:
            shutil.rmtree(old)
        if self.step == self.config.steps:
            link = self.folder / "final.partial"
            link.unlink(missing_ok=True)
            link.symlink_to(Path("checkpoints") / folder.name / "model")
            link.rename(self.folder / "final")

    def _write_config(self, values: dict[str, Any]) -> None:
        """Write config.yaml; when the run continues, say which sections of it have changed."""
        file = self.folder / "config.yaml"
        if self.last_checkpoint and file.exists():
            before = yaml.safe_load(file.read_text())
            for key in (key for key in values if values[key] != before.get(key)):
                print(f"{file}: the run continues with another `{key}`: {before.get(key)} -> {values[key]}")
        file.write_text(yaml.safe_dump(values, sort_keys=False))

    def _keep_metrics_before(self, step: int) -> None:
        """Drop the rows after the checkpoint that the run continues from: those steps are done again."""
        file = self.folder / "metrics.jsonl"
        rows = [row for row in read_metrics(file) if row["step"] <= step]
        partial = file.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.rename(file)


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run folder, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".partial")


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Rows of a metrics file; none if there is no file. A last line that was cut off is left out."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _wandb_mode(config: StageConfig) -> Literal["disabled", "online", "offline"]:
    if not config.wandb:
        return "disabled"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"
