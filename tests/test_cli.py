"""The commands as a user starts them: help, and one clear line for what is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simplear_rl.__main__ import COMMANDS
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.cli import exit_on_user_error, read_command_line
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig
from simplear_rl.evaluate import OPTIONS

REPOSITORY = Path(__file__).parents[1]


def run(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


# Of each command an example, and a key with its type, default and description.
HELP = {
    "tokenize": ("python -m simplear_rl.tokenize input=", r"shard_size +integer >= 1 \(1000\)  samples of a shard"),
    "pretrain": ("ray job submit", r"data\.batch_size +integer >= 1 \(required\)  images per step"),
    "sft": ("python -m simplear_rl.sft seed=1", r"data\.sources\.shards +path \(required\)  folder of Parquet"),
    "dpo": ("python -m simplear_rl.dpo seed=1", r"data\.batch_size +integer >= 1 \(required\)  pairs per step"),
    "grpo": ("python -m simplear_rl.grpo seed=1", r"learner\.zero_stage +0 \| 1 \| 2 \| 3 \(0\)  what ZeRO shards"),
    "evaluate": ("python -m simplear_rl.evaluate --bench", r"policy +path or null \(null\)  policy folder to evaluate"),
    "score": ("python -m simplear_rl.score --images", r"batch_size +integer >= 1 \(32\)  images scored together"),
    "generate": ("python -m simplear_rl.generate --prompts", r"temperature +number >= 0 \(1\.0\)  0 is greedy"),
    "report": ("python -m simplear_rl.report runs/grpo", r"--output OUTPUT +file \(default: report.html"),
    "compare": ("python -m simplear_rl.compare runs", r"images_per_prompt +integer >= 1 \(1\)  of policies"),
    "reward_model": ("simplear_rl.reward_model images=", r"wrong_prompts +integer >= 1 \(4\)  that an image's own"),
    "label": ("python -m simplear_rl.label --prompts", r"images_per_prompt +integer .*\(2\)  consecutive images"),
    "serve": ("python -m simplear_rl.serve --config", r"limits\.body_bytes +integer >= 1 \(65536\)  of a request"),
    "demo": ("python -m simplear_rl.demo seed=1", r"fresh +true \| false \(false\)  delete `root` first"),
    "create_policy": ("python -m simplear_rl.create_policy --source", "--output OUTPUT +new folder"),
}


@pytest.mark.parametrize("command", HELP)
def test_help_explains_the_command_before_the_slow_imports(command):
    example, key = HELP[command]
    interpreter = [sys.executable, "-X", "importtime", "-m", f"simplear_rl.{command}", "--help"]
    shown = subprocess.run(
        interpreter, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"COLUMNS": "100"}
    )
    assert shown.returncode == 0
    assert re.match(rf"usage: python -m simplear_rl\.{command} .*options:.*examples:\n.*{example}", shown.stdout, re.S)
    assert re.search(key, shown.stdout.partition("options:")[2])
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "ray", "transformers", "huggingface_hub", "numpy"}


def test_commands_are_listed():
    for arguments in [], ["--help"]:
        shown = run("simplear_rl", *arguments)
        assert shown.returncode == 0
        assert re.findall(r"^  (\w+)  +\S", shown.stdout.partition("commands")[2], re.M) == list(COMMANDS)
    commands = {file.stem for file in (REPOSITORY / "simplear_rl").glob("*.py") if "if __name__ ==" in file.read_text()}
    assert set(COMMANDS) == set(HELP) == commands - {"__main__"} | {"report"}


def test_every_benchmark_can_be_chosen():
    shown = run("simplear_rl.evaluate", "--help").stdout
    assert f"--benchmark {{{','.join(BENCHMARKS)}}}" in shown


def test_packaged_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = "configs/simplear_0.5b/grpo.yaml"

    def read(*arguments):
        monkeypatch.setattr(sys, "argv", ["grpo", "--config", *arguments])
        return read_command_line(GrpoConfig, "grpo").config

    assert read(file) == load_config(GrpoConfig, CONFIGS.parent / file)
    own = tmp_path / file
    own.parent.mkdir(parents=True)
    own.write_text((CONFIGS.parent / file).read_text().replace("samples_every: 10", "samples_every: 77"))
    assert read(file).samples_every == 77
    with pytest.raises(SystemExit, match=r"simplear_rl\.grpo: configs/nowhere\.yaml: not a readable YAML file"):
        read("configs/nowhere.yaml")


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


def test_a_full_gpu_is_one_message_that_names_the_actor_and_what_helps():
    class ActorError(RuntimeError):  # as Ray hands an actor's error on
        cause = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        actor_repr = "grpo/learner-0"

    def command():
        raise ActorError

    with pytest.raises(SystemExit, match=r"grpo/learner-0: the GPU has no memory left: CUDA out .* 2 GiB\nTake fewer"):
        exit_on_user_error("grpo", command)
    with pytest.raises(RuntimeError, match="^another$"):
        exit_on_user_error("grpo", lambda: (_ for _ in ()).throw(RuntimeError("another")))
