"""A run directory: configuration, metrics, checkpoints, samples, and where a stopped run continues."""

import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn, cast

import wandb
import yaml
from tqdm import tqdm

from simplear_rl.config.stages import GrpoConfig, StageConfig
from simplear_rl.errors import UserError
from simplear_rl.files import require_writable, sync, write_text, writing_to
from simplear_rl.run.checkpoints import (
    begin_checkpoint,
    checkpoints,
    expired,
    newest_intact,
    reference_policy,
    remove,
    require_space,
    require_storage,
    step_of,
    steps_in,
)
from simplear_rl.run.events import kept, note
from simplear_rl.run.final import remove_copy, require_replaceable, set_final
from simplear_rl.run.history import read_config, read_metrics, require_same_learner
from simplear_rl.run.media import media

# A server that does not answer is waited for so long; at the end, what is not uploaded then stays in the folder.
WANDB_SECONDS = {"init_timeout": 30.0, "finish_timeout": 60.0}


def finished(config: StageConfig) -> bool:
    """Whether the run has done all its steps already; says so if it has.

    Raises:
        UserError: it has not, and its folder cannot be written to; or it has, and something stands in place of `final`.
    """
    done = checkpoints(config.run)
    if not done or step_of(done[-1]) < config.steps or newest_intact(config.run) != done[-1]:
        require_writable(config.run, "run")
        return False
    set_final(config.run, done[-1])  # it may have been killed before, or lost its links on the way through a bucket
    print(f"{config.run}: all {config.steps} steps are done; more `steps` or another `run` goes on")
    return True


class Run:
    """The folder `config.run`. Nothing is written to it before the first step begins.

    config.yaml          the configuration as it ran
    metrics.jsonl        one line per step
    checkpoints/step-N/  `model` (Hugging Face format), `learner` (optimizer state) and `checksums.json`; with
                         `learner.ema` also `ema`, the average as a policy folder, and with `rollout.ahead` `behind`,
                         the policy before the last step
    final                link to the last step's model, once the run is finished (a copy, where there are no links)
    wandb_run_id         of its Weights & Biases run, which every start of this folder continues
    samples/             pictures of samples
    evaluations/step-N/  benchmark scores of that step's weights, see benchmarks/output.py
    events.jsonl         starts, lost actors and warnings, see run/events.py
    failed-step-N/       what a step was refused for, if one was

    `sometimes` names metrics that not every step logs. What is in `after_step` is called with every step once the
    driver has done all that belongs to it.

    Raises:
        UserError: there is no room for a checkpoint, a file of the folder is damaged, or the learner's settings exclude
            that the last checkpoint is loaded.
    """

    stopping = False  # SIGTERM has come to this process

    def __init__(self, stage: str, config: StageConfig, sometimes: Sequence[str] = ()):
        self.stage, self.config, self.sometimes = stage, config, sometimes
        self.folder = config.run
        self.samples = self.folder / "samples"
        self.last_checkpoint = newest_intact(self.folder)
        self.step = self.saved = step_of(self.last_checkpoint) if self.last_checkpoint else 0
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.wandb: Any = None
        rows = read_metrics(self.folder / "metrics.jsonl")
        self.rows = [row for row in rows if row["step"] <= self.step]
        self.again = [row["step"] for row in rows if row["step"] > self.step]
        self.events, self.after_step = kept(self.folder, lambda: self.step), list[Callable[[int], object]]()
        self.before = read_config(self.folder / "config.yaml") if self.last_checkpoint else {}
        self._say_missing_rows()
        require_same_learner(self.before, config)
        require_replaceable(self.folder, self.last_checkpoint)
        require_space(config)

    @property
    def policies(self) -> list[Path]:
        """The policy folders that the run begins or continues from."""
        folders = [self.config.start] + ([self.last_checkpoint / "model"] if self.last_checkpoint else [])
        if isinstance(self.config, GrpoConfig):
            folders.append(reference_policy(self.config, self.step + 1))
        return list(dict.fromkeys(folders))

    def reference(self, step: int) -> Path:
        """Policy folder of the reference of a step of GRPO, once it is written."""
        assert isinstance(self.config, GrpoConfig)
        folder = reference_policy(self.config, step)
        if not folder.exists():
            self._settle()
        return folder

    def __enter__(self) -> "Run":
        self.events.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if not isinstance(error, KeyboardInterrupt):
                self._settle()
        except Exception as failure:
            if not error:
                raise
            print(f"{self.folder}: the last checkpoint was not finished: {failure}", flush=True)
        finally:
            self.events.__exit__(None, None, None)
            self._end_wandb()

    def _begin_wandb(self, values: dict[str, Any]) -> Any:
        """Begin or continue its Weights & Biases run: as WANDB_MODE says, else online if there is a key.

        Whatever fails there is said and stops nothing: the run is offline then, or not logged there at all.
        """
        identity = self.folder / "wandb_run_id"
        if not identity.exists() or not identity.read_text(encoding="utf-8"):
            write_text(identity, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        for tried in dict.fromkeys([mode, "offline"]) if self.config.wandb else ():
            try:
                started = wandb.init(
                    project=os.environ.get("WANDB_PROJECT") or "simplear-rl",
                    name=f"{self.stage}-{self.folder.name}",
                    id=identity.read_text(encoding="utf-8"),
                    resume="allow",
                    dir=self.folder,
                    config=values,
                    mode=cast(Any, tried),
                    settings=wandb.Settings(silent=tried != "online", **WANDB_SECONDS),
                )
                if tried == "offline" and "WANDB_MODE" not in os.environ:
                    print(f"{self.folder}/wandb: offline; `wandb sync` uploads it, WANDB_MODE=online does so at once")
                return started
            except Exception as error:  # of the network, of its own process, of the key: each has its own class
                instead = "without" if tried == "offline" else "offline"
                print(f"{self.folder}: Weights & Biases, {tried}: {error}; the run goes on {instead}", flush=True)
        return None

    def _end_wandb(self) -> None:
        if self.wandb:
            with self._wandb_may_be_gone():
                self.wandb.finish()

    def steps(self) -> Iterator[int]:
        """The steps still to do, from 1 to config.steps, with a progress bar.

        SIGTERM lets the step at hand finish, makes a checkpoint due after it and then ends the process with status 143.

        Raises:
            UserError: a checkpoint that was being written meanwhile has failed, see `checkpoint`.
        """

        def stop(*_: object) -> None:
            type(self).stopping = True

        self._begin()
        self.logged = monotonic()  # when the step before was recorded
        before = signal.signal(signal.SIGTERM, stop)
        try:
            with tqdm(total=self.config.steps, initial=self.step, desc=self.stage, unit="step") as self.bar:
                while self.step < self.config.steps:
                    stopping = self.stopping
                    self._settle(wait=stopping)
                    if stopping and self.saved == self.step:
                        break
                    yield self.step + 1
                    self.bar.update()
                    self._log_media()
                    for follow in self.after_step:
                        follow(self.step)
                self._settle()
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.stopping:
            self.stop(self.folder, self.step)

    @classmethod
    def stop(cls, folder: Path, step: int) -> NoReturn:
        """End the process as SIGTERM has asked it to."""
        cls.stopping = False
        print(f"{folder}: stopped after step {step}; the same command continues", flush=True)
        sys.exit(128 + signal.SIGTERM)

    def log(self, step: int, metrics: dict[str, float], show: tuple[str, ...]) -> None:
        """Record the metrics of a finished step; `show` names those that the progress bar displays.

        `step_seconds` is the time since the step before was recorded, with its checkpoint and what else followed it.
        """
        metrics = metrics | {"step_seconds": monotonic() - self.logged}
        self.logged = monotonic()
        best, names = self.config.keep_best, sorted({*metrics, *self.sometimes})
        if best and best.metric not in names:
            raise UserError(f"keep_best.metric: {best.metric!r} is not logged; there are {', '.join(names)}")
        file = self.folder / "metrics.jsonl"
        with writing_to(file), file.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps({"step": step} | metrics) + "\n")
        if self.wandb:
            with self._wandb_may_be_gone():
                self.wandb.log(metrics, step=step)
        self.bar.set_postfix_str(", ".join(f"{name} {metrics[name]:.4g}" for name in show if name in metrics))
        self.step = step

    def _log_media(self) -> None:
        """Show what the step at hand has left in the folder, with its metrics. What fails is said and stops nothing."""
        with self._wandb_may_be_gone():
            try:
                if self.wandb and (found := media(self.folder, self.step)):
                    self.wandb.log(found, step=self.step)
            except (OSError, ValueError, TypeError) as error:  # of a file that is damaged, or cannot be copied
                print(f"{self.folder}: not shown on Weights & Biases: {error}", flush=True)

    @contextmanager
    def _wandb_may_be_gone(self) -> Iterator[None]:
        """Its process can be killed, and `ray job stop` signals that before the step at hand is finished."""
        try:
            yield
        except (ConnectionError, wandb.Error) as error:
            self.wandb = None
            print(f"{self.folder}: no more Weights & Biases ({error}); metrics.jsonl goes on", flush=True)

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint follows the step just logged."""
        return self.stopping or self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps

    def checkpoint(self, save: Callable[[Path], Callable[[], None]]) -> None:
        """Begin a checkpoint of the step just logged, once the one before is finished.

        `save(folder)` copies the state and returns a function that writes it. A background thread writes the files,
        deletes expired checkpoints and checks that another one fits. Its errors are raised at the start of the next
        step.

        Raises:
            UserError: the disk is full or cannot be written to; the checkpoints before are untouched.
        """
        self._settle()
        require_space(self.config)
        folder = self.folder / "checkpoints" / f"step-{self.step:06d}"
        self.writing = self.writer.submit(self._finish, folder, begin_checkpoint(folder, save))

    def _finish(self, folder: Path, write: Callable[[], None]) -> None:
        sync(self.folder / "metrics.jsonl")  # no checkpoint is there without the rows of its steps
        write()
        self.saved = step_of(folder)
        for old in expired(self.folder, self.config, read_metrics(self.folder / "metrics.jsonl")):
            remove(old)
        if self.saved == self.config.steps:
            set_final(self.folder, folder)
        else:
            require_space(self.config)  # now, while little would be lost

    def _settle(self, wait: bool = True) -> None:
        """Wait for the checkpoint under way, unless told not to, and raise the error that it ended with."""
        if self.writing and (wait or self.writing.done()):
            writing, self.writing = self.writing, None
            writing.result()

    def _begin(self) -> None:
        """Write what a run begins with."""
        require_storage(self.folder)
        remove_copy(self.folder)
        self.samples.mkdir(parents=True, exist_ok=True)
        values = self.config.model_dump(mode="json")
        for partial in (self.folder / "checkpoints").glob("*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        for evaluation in steps_in(self.folder / "evaluations"):
            if step_of(evaluation) > self.step:  # as the rows of metrics: those steps are done again
                shutil.rmtree(evaluation)
        self._write_config(values)
        self._write_metrics()
        again = f"; steps {self.again[0]} to {self.again[-1]} are done again" if self.again else ""
        note(f"continued after step {self.step}{again}" if self.last_checkpoint or again else "started")
        self.wandb = self._begin_wandb(values)

    def _say_missing_rows(self) -> None:
        """Say which steps before the checkpoint have no row: a crash of the machine can cut the file."""
        missing = sorted(set(range(1, self.step + 1)) - {int(row["step"]) for row in self.rows})
        if missing:
            print(
                f"{self.folder / 'metrics.jsonl'}: {len(missing)} rows are missing, of steps {missing[0]} to "
                f"{missing[-1]}; the run goes on without them"
            )

    def _write_config(self, values: dict[str, Any]) -> None:
        """Write config.yaml; when the run continues, say which keys of it have changed."""
        file = self.folder / "config.yaml"
        for key, before, now in _changes(self.before, values) if self.before else ():
            print(f"{file}: the run continues with another `{key}`: {before} -> {now}")
        write_text(file, yaml.safe_dump(values, sort_keys=False))

    def _write_metrics(self) -> None:
        """Leave out the rows after the checkpoint that the run continues from: those steps are done again."""
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))


def _changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys of `now` whose values are others in `before`, each with both; those of sections with dots."""
    for key, value in now.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            yield from _changes(old, value, f"{prefix}{key}.")
        elif old != value:
            yield f"{prefix}{key}", old, value
