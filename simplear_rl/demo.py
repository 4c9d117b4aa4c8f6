"""The demo: tokenizer, reward model, pretraining, SFT and GRPO on the miniature world, with a report.

Finished parts are kept: the same command continues where the last one stopped.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.placement import connect
from simplear_rl import grpo, pretrain, sft
from simplear_rl.cli import run_command
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import DemoConfig, GrpoConfig, SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.evaluate import evaluate
from simplear_rl.inputs import require
from simplear_rl.report.html import summary, write_report
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.lock import LOCK, locked

STAGES: dict[str, tuple[Callable[[Any], None], type[Any]]] = {
    "pretrain": (pretrain.train, SupervisedConfig),
    "sft": (sft.train, SupervisedConfig),
    "grpo": (grpo.train, GrpoConfig),
}

GUIDANCE_SCALE = 2.5


@locked("root")
def demo(config: DemoConfig) -> None:
    """Run what is not finished yet and write `root`/report.html."""
    if config.fresh:
        _empty(config.root)
    overrides = [f"root={config.root}", f"seed={config.seed}"]
    configs: dict[str, Any] = {
        stage: load_config(schema, CONFIGS / "shapes" / f"{stage}.yaml", overrides)
        for stage, (_, schema) in STAGES.items()
    }
    _same_seed(config.root / "seed", config.seed)
    connect()
    first, last = configs["pretrain"], configs["grpo"]
    with timed(config.root, "tokenizer"):
        require(first, first.tokenizer)
    with timed(config.root, "reward model"):
        require(last, *last.reward.files)
    with timed(config.root, "data"):
        require(first, *first.data.folders, first.start)
        require(configs["sft"], *configs["sft"].data.folders)
        require(last, last.prompts)
    for stage, (train, _) in STAGES.items():
        if not (configs[stage].run / "final" / "config.json").is_file():
            with timed(config.root, stage):
                train(configs[stage])
        policy, output = configs[stage].run / "final", config.root / "evaluation" / stage
        _evaluate(policy, output, overrides)
        _evaluate(policy, output.with_name(f"{stage}-guided"), [*overrides, f"guidance_scale={GUIDANCE_SCALE}"])
    for checkpoint in checkpoints(last.run)[:-1]:  # the way to the last, for the curve of scores
        _evaluate(checkpoint / "model", config.root / "evaluation" / f"grpo-{checkpoint.name}", overrides)
    report = write_report(config.root, list(STAGES), GUIDANCE_SCALE)
    print(f"\n{summary(config.root, list(STAGES))}\n\nreport: {report}")


def _empty(root: Path) -> None:
    """Delete all but the lock."""
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _evaluate(policy: Path, output: Path, overrides: list[str]) -> None:
    """Evaluate a policy, unless that is done already."""
    if not (output / "scores.json").exists():
        values = [*overrides, f"policy={policy}", f"output={output}"]
        with timed(output.parent.parent, f"evaluation of {output.name}"):
            evaluate(load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", values))


def _same_seed(file: Path, seed: int) -> None:
    """Refuse to continue a demo that began with another seed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists() and file.read_text() not in ("", str(seed)):  # a crash can leave it empty
        raise UserError(
            f"{file.parent} was begun with seed {file.read_text()}, not {seed}: set fresh=true, or another root"
        )
    file.write_text(str(seed))


@contextmanager
def timed(root: Path, phase: str) -> Iterator[None]:
    """Append the seconds that a phase took to timings.jsonl, also when it is interrupted."""
    start = time.monotonic()
    try:
        yield
    finally:
        with (root / "timings.jsonl").open("a") as file:
            file.write(json.dumps({"phase": phase, "seconds": time.monotonic() - start}) + "\n")


if __name__ == "__main__":
    run_command(demo, DemoConfig, "demo")
