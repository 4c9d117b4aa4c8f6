"""The commands as a user starts them: help, and one clear line for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from simplear_rl.cli import read_command_line
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.evaluate import OPTIONS

REPOSITORY = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "grpo", "evaluate", "demo"])
def test_help_has_examples_and_keys(stage):
    shown = run(f"simplear_rl.{stage}", "--help")
    assert shown.returncode == 0
    assert f"python -m simplear_rl.{stage} seed=1" in shown.stdout
    assert "ray job submit" in shown.stdout
    assert "root" in shown.stdout


def test_options_of_evaluate_are_short_for_keys(monkeypatch):
    """Values stay what they are, whatever they would mean in YAML."""
    options = [
        "--model",
        "no: 1 #",
        "--engine",
        "sjd",
        "--output",
        "é",
        "--score-only",
        "3",
        "--allow-missing",
        "seed=4",
    ]
    monkeypatch.setattr(sys, "argv", ["evaluate", *options])
    config = read_command_line(EvaluateConfig, "evaluate", options=OPTIONS).config
    paths = config.policy, config.output, config.score_only
    assert paths == tuple(Path(name).absolute() for name in ("no: 1 #", "é", "3"))
    assert (config.engine.type, config.allow_missing, config.seed) == ("sjd", True, 4)


def test_an_engine_that_there_is_not_is_refused():
    failed = run("simplear_rl.evaluate", "--engine", "fast")
    assert failed.returncode != 0 and "engine.type: Input should be 'vllm', 'transformers' or 'sjd'" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learner.zero_stag=1"], "learner.zero_stag: unknown key; did you mean learner.zero_stage?"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: not a readable YAML file"),
        (["world=null", "root=/tmp/nowhere"], "/tmp/nowhere/tokenizer: not found"),
        (["steps=2", "--config", "configs/shapes/grpo.yaml", "steps=x"], "steps: Input should be a valid integer"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(arguments, message):
    failed = run("simplear_rl.grpo", *arguments)
    assert failed.returncode != 0
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
