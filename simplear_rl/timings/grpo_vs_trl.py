"""A GRPO step here and in TRL, side by side: same policy, reward model, prompts, group size, KL and precision.

  python -m simplear_rl.demo                       # makes policy and reward model
  python -m simplear_rl.timings.grpo_vs_trl --root ~/simplear_runs/shapes --steps 20 --rounds 3
  python -m simplear_rl.timings.grpo_vs_trl --root ~/simplear_runs/shapes --policy 5m --side 16 --steps 4

Both train for --steps steps in turns, --rounds times; the first two steps of each run do not count. Both learn from
--micro-batch images at a time, from all images of a step where it is not given. TRL has --threads threads. So have our
learner and reference; the reward has one, which is the fastest for its small batches, and as many engines of one thread
each draw as the learner has threads. With `ahead` learner, reference and engines have half of them, since drawing and
learning go on at the same time. TRL is installed into an environment of its own (--environment), which takes all other
packages from this one.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil
from transformers import AutoTokenizer

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.policy.model import random_policy
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.run.history import read_metrics
from simplear_rl.timings.policies import SMALL, geometry

PACKAGES = ("trl==1.16.0", "accelerate==1.15.0", "datasets==5.2.0", "multiprocess==0.70.19")
WARM_UP = 2  # steps
LOOK_SECONDS = 10
VLLM, OTHER = "rollout.engine.type=vllm", "rollout.engine.type=transformers"
SYNC, AHEAD = "rollout.ahead=0", "rollout.ahead=1"
VARIANTS = {
    "vllm": [VLLM, SYNC],
    "vllm, ahead": [VLLM, AHEAD],
    "transformers": [OTHER, SYNC],
    "transformers, ahead": [OTHER, AHEAD],
    "transformers, bfloat16": [
        OTHER,
        SYNC,
        "learner.dtype=bfloat16",
        "rollout.engine.dtype=bfloat16",
        "learner.zero_stage=1",
    ],
}
TRL = "TRL"


def trl_python(environment: Path) -> Path:
    """The Python of TRL's environment, which is made if it is not there."""
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES], check=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def run(command: list[str], log: Path) -> float:
    """Run a command; returns the most bytes that it and its children held at a time, shared memory counted once.

    It looks seldom: to count shared memory takes processor time, the more the more processes there are.
    """
    peak = 0.0
    with log.open("w", encoding="utf-8") as output:
        process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            with suppress(psutil.TimeoutExpired):
                process.wait(LOOK_SECONDS)
            held = 0.0
            for part in [process, *process.children(recursive=True)] if process.is_running() else []:
                with suppress(psutil.Error):  # it has just ended
                    held += part.memory_full_info().pss
            peak = max(peak, held)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return peak


class Comparison:
    """The two sides. `overrides` describe the configuration for both."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.overrides = [
            f"root={options.root}",
            f"steps={WARM_UP + options.steps}",
            "checkpoint_every=1000000",
            "samples_every=1000000",
            "evaluation=null",
            "keep_best=null",
            "wandb=false",
        ]
        config = self._config()
        self.images = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
        micro_batch = options.micro_batch or self.images
        if not 1 <= micro_batch <= self.images or self.images % micro_batch:
            raise SystemExit(f"--micro-batch {micro_batch}: expected a divisor of {self.images}, the images of a step")
        self.overrides.append(f"learner.micro_batch={micro_batch}")
        if options.policy:
            self.overrides.append(f"start={folder / 'policy'}")
            self._write_policy(config)
        self.python = trl_python(options.environment)

    def _config(self) -> GrpoConfig:
        return load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", [*self.overrides, "run=unused"])

    def _write_policy(self, config: GrpoConfig) -> None:
        """A random policy of another size, with the codes of the miniature world's tokenizer."""
        layout, side = read_layout(config.start), self.options.side
        decoder = replace(SMALL[self.options.policy], tokens=side**2)
        random_policy(
            self.folder / "policy",
            AutoTokenizer.from_pretrained(config.start),
            codebook_size=layout.codebook_size,
            grid=(side, side),
            prompt_prefix=layout.prompt_prefix,
            geometry=geometry(decoder),
            seed=0,
        )

    def ours(self, values: list[str], name: str) -> tuple[list[float], float]:
        """Seconds of each step, and peak memory."""
        output, threads = self.folder / name, max(1, self.options.threads // (2 if AHEAD in values else 1))
        values = [
            *values,
            f"learner.actors.threads={threads}",
            f"reference.threads={threads}",
            "reward.actors.threads=1",
            f"rollout.engine.actors.count={threads}",
            "rollout.engine.actors.threads=1",
            f"rollout.engine.max_concurrent={self.images // threads}",
        ]
        command = [sys.executable, "-m", "simplear_rl.grpo", "--config", "configs/shapes/grpo.yaml"]
        peak = run([*command, *self.overrides, f"run={output}", *values], self.folder / f"{name}.log")
        return [row["step_seconds"] for row in read_metrics(output / "metrics.jsonl")][WARM_UP:], peak

    def trl(self, name: str) -> tuple[list[float], float]:
        """The same of TRL."""
        log, output = self.folder / f"{name}.log", self.folder / name
        command = [str(self.python), "-m", "simplear_rl.timings.trl_side", str(self.options.threads)]
        peak = run([*command, self.options.precision, str(output), *self.overrides, f"run={output}"], log)
        return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])[WARM_UP - 1 :], peak


def main() -> None:
    """Print a line for every run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of a demo")
    parser.add_argument("--policy", choices=SMALL, help="a random policy of this size instead of the demo's SFT policy")
    parser.add_argument("--side", type=int, default=16, help="with --policy: codes along each side of an image")
    parser.add_argument("--steps", type=int, default=20, help="that count, of each run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of TRL, and how many engines draw")
    parser.add_argument("--micro-batch", type=int, help="images of a pass, on both sides")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="TRL's")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["vllm", "vllm, ahead"])
    parser.add_argument("--environment", type=Path, default=Path(".trl"), help="of TRL; made if it is not there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(options, Path(folder))
        measured: dict[str, list[tuple[list[float], float]]] = {name: [] for name in (TRL, *options.variants)}
        for i in range(options.rounds):
            for name, runs in measured.items():
                file = f"{name.replace(', ', '-')}-{i}"
                runs.append(comparison.trl(file) if name == TRL else comparison.ours(VARIANTS[name], file))
                seconds, peak = runs[-1]
                print(
                    f"{name}: {median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f}, {peak / 2**30:.1f} GiB"
                )
        print("\n| | s a step | images/s | faster than TRL, by round | GiB |\n| --- | --- | --- | --- | --- |")
        for name, runs in measured.items():
            middle = median(second for seconds, _ in runs for second in seconds)
            ratios = [median(theirs) / median(mine) for (mine, _), (theirs, _) in zip(runs, measured[TRL], strict=True)]
            faster, peak = ", ".join(f"{ratio:.2f}" for ratio in ratios), max(peak for _, peak in runs)
            print(f"| {name} | {middle:.3f} | {comparison.images / middle:.0f} | {faster} | {peak / 2**30:.1f} |")


if __name__ == "__main__":
    main()
