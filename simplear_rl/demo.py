"""The demo: tokenizer, reward model, pretraining, SFT and GRPO on the miniature world, with a report.

Finished parts are kept: the same command continues where the last one stopped.
"""

from simplear_rl.cli import read_command_line
from simplear_rl.config.stages import DemoConfig, GrpoConfig, SupervisedConfig

if __name__ == "__main__":  # --help and mistakes are answered before the slow imports below
    command_line = read_command_line(DemoConfig, "demo")

from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.connection import connect
from simplear_rl import grpo, sft
from simplear_rl.benchmarks.output import open_folder
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError
from simplear_rl.evaluate import evaluate_policies
from simplear_rl.inputs import require
from simplear_rl.report.evaluations import table
from simplear_rl.report.page import write_report
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.lock import clear, locked
from simplear_rl.run.phases import timed

STAGES: dict[str, Callable[[Any], None]] = {**sft.STAGES, "grpo": grpo.train}
GUIDANCE_SCALE = 2.5


@locked("root")
def demo(config: DemoConfig) -> None:
    """Run what is not finished yet and write `root`/report.html."""
    if config.fresh:
        clear(config.root)
    overrides = [f"root={config.root}", f"seed={config.seed}"]
    schemas: dict[str, type[Any]] = {"pretrain": SupervisedConfig, "sft": SupervisedConfig, "grpo": GrpoConfig}
    configs: dict[str, Any] = {
        stage: load_config(schema, CONFIGS / "shapes" / f"{stage}.yaml", overrides) for stage, schema in schemas.items()
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
    outputs: dict[Path, tuple[Path, list[str]]] = {}  # policies to evaluate, and how
    for stage, train in STAGES.items():
        policy, output = configs[stage].run / "final", config.root / "evaluation" / stage
        if not (policy / "config.json").is_file():
            with timed(config.root, stage):
                train(configs[stage])
        outputs[output] = policy, []
        outputs[output.with_name(f"{stage}-guided")] = policy, [f"guidance_scale={GUIDANCE_SCALE}"]
    for checkpoint in checkpoints(last.run)[:-1]:  # the way to the last, for the curve of scores
        outputs[config.root / "evaluation" / f"grpo-{checkpoint.name}"] = checkpoint / "model", []
    evaluations = [
        load_config(
            EvaluateConfig,
            CONFIGS / "shapes" / "evaluate.yaml",
            [*overrides, f"policy={policy}", f"output={output}", *how],
        )
        for output, (policy, how) in outputs.items()
    ]
    if missing := [evaluation for evaluation in evaluations if not is_evaluated(evaluation)]:
        with timed(config.root, "evaluations"):
            evaluate_policies(missing)
    print(f"\n{table(config.root, list(STAGES))}\n\nreport: {write_report([config.root])}")


def is_evaluated(config: EvaluateConfig) -> bool:
    """Whether an evaluation has its scores. Raises UserError if they are those of other weights, see `open_folder`."""
    there = (config.output / "scores.json").exists()
    if there:
        open_folder(config, BENCHMARKS[config.benchmark](config))
    return there


def _same_seed(file: Path, seed: int) -> None:
    """Refuse to continue a demo that began with another seed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.exists() else ""  # a crash can leave it empty
    if before not in ("", str(seed)):
        raise UserError(f"{file.parent} was begun with seed {before}, not {seed}: set fresh=true, or another root")
    file.write_text(str(seed), encoding="utf-8")


if __name__ == "__main__":
    command_line.run(demo)
