"""Run directories: metrics, checkpoints, resuming."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
import wandb

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.folder import Run, finished
from simplear_rl.run.history import read_metrics


@pytest.fixture
def config(tmp_path, policy):
    overrides = [f"root={tmp_path}", f"start={policy}", "steps=6", "checkpoint_every=2", "wandb=false"]
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", overrides)


def work(config, until):
    done = []
    with Run("pretrain", config) as run:
        for step in run.steps():
            if step > until:
                break
            run.log(step, {"loss": 1 / step}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))
            done.append(step)
    return done


def test_continues_after_the_last_checkpoint_without_repeating_rows(config):
    assert work(config, until=5) == [1, 2, 3, 4, 5]
    assert not finished(config)
    assert work(config, until=99) == [5, 6]
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert finished(config)


def test_keeps_the_newest_checkpoints_and_links_the_last(config):
    work(config, until=99)
    assert [path.name for path in checkpoints(config.run)] == ["step-000004", "step-000006"]
    assert (config.run / "final").readlink().parts == ("checkpoints", "step-000006", "model")


def test_evaluations_of_steps_that_are_done_again_are_removed(config):
    work(config, until=5)
    evaluations = config.run / "evaluations"
    for step in 2, 4, 5:
        (evaluations / f"step-{step:06d}").mkdir(parents=True)
        (evaluations / f"step-{step:06d}" / "scores.json").write_text("{}")
    assert work(config, until=4) == []
    assert sorted(folder.name for folder in evaluations.iterdir()) == ["step-000002", "step-000004"]


def test_partial_checkpoints_and_cut_metrics_are_passed_over(config):
    work(config, until=4)
    (config.run / "checkpoints" / "step-000006.partial").mkdir()
    with (config.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert checkpoints(config.run)[-1].name == "step-000004"
    assert work(config, until=99) == [5, 6]


def test_says_what_changed_when_a_run_continues(config, capsys):
    work(config, until=4)
    work(config.model_copy(update={"seed": 7}), until=4)
    assert "the run continues with another `seed`: 0 -> 7" in capsys.readouterr().out


def test_failed_checkpoint_leaves_the_one_before(config):
    work(config, until=2)

    def fail(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Run("pretrain", config) as run:
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: fail(folder))
    assert [path.name for path in checkpoints(config.run)] == ["step-000002"]
    assert read_metrics(config.run / "metrics.jsonl")[-1]["step"] >= 4


def test_sigterm_finishes_the_step_and_makes_a_checkpoint(config):
    with pytest.raises(SystemExit) as ended, Run("pretrain", config) as run:
        for step in run.steps():
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            run.log(step, {"loss": 0.0}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))
    assert ended.value.code == 143
    assert checkpoints(config.run)[-1].name == "step-000003"
    assert work(config, until=99) == [4, 5, 6]


def test_run_goes_on_without_weights_and_biases(config, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    others = set(psutil.Process().children())
    with Run("pretrain", config.model_copy(update={"wandb": True})) as run:
        for step in run.steps():
            if step == 2:
                for process in set(psutil.Process().children()) - others:
                    process.terminate()
                time.sleep(1)
            run.log(step, {"loss": 0.0}, show=("loss",))
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "no more Weights & Biases" in capsys.readouterr().out
    with suppress(ConnectionError):  # else it comes up in whichever later test imports what it hooks into
        wandb.teardown()
