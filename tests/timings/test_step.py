"""`python -m simplear_rl.timings.step` and `.exactness` on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from simplear_rl.plan.speed import read_measured
from simplear_rl.timings.exactness import compare
from simplear_rl.timings.policies import sizes_of, write_policy
from simplear_rl.timings.step import Step, read_options

PHASES = ["rollout", "reward", "reference", "update", "weights"]


STEP = ["--policy", "1m", "--resolution", "64", "--prompts", "2", "--samples", "3", "--guidance-scale", "2"]
STEP += ["--clip", "ViT-B-32"]


def test_every_phase_is_timed_and_the_file_makes_the_plan_agree(tmp_path):
    file = tmp_path / "measured.json"
    command = [sys.executable, "-m", "simplear_rl.timings.step", *STEP, "--output", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines() if " planned " in line]
    assert [line[0] for line in lines] == [*PHASES, "step"]
    assert "ms a token, 6 images" in run.stdout and "--dry-run plans" in run.stdout
    measured = read_measured(file)
    assert list(measured.seconds) == list(measured.factors) == PHASES
    # Planned by the figures of this very step, every phase takes what it took.
    assert Step(read_options(STEP), tmp_path).plan(measured.speed()) == pytest.approx(measured.seconds)


def test_the_engine_without_vllm_draws_what_the_plain_loop_draws(tmp_path, capsys):
    write_policy(tmp_path / "policy", sizes_of("1m", resolution=64))
    assert compare(tmp_path / "policy", "transformers", contexts=24)
    lines = capsys.readouterr().out.splitlines()
    # A random number may lie at the border of two codes: a sampled image or two may differ, none of the greedy ones.
    assert len(lines) == 8 and all("12 of 12 images equal" in line for line in lines if "greedy" in line)
