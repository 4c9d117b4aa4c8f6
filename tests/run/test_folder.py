"""Run directories: metrics, checkpoints, resuming."""

import errno
import os
import shutil
import signal
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import wandb

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.run import folder as folder_module
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


def test_a_disk_that_refuses_metrics_is_named(config):
    message = "metrics.jsonl: cannot be written: No space left on device"
    with pytest.raises(UserError, match=message), Run("pretrain", config) as run:
        for step in run.steps():
            (run.folder / "metrics.jsonl").unlink()
            (run.folder / "metrics.jsonl").symlink_to("/dev/full")
            run.log(step, {"loss": 1.0}, show=("loss",))


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
    optimizer = config.learner.optimizer.model_copy(update={"learning_rate": 1e-4})
    learner = config.learner.model_copy(update={"optimizer": optimizer})
    work(config.model_copy(update={"seed": 7, "learner": learner}), until=4)
    rate = "another `learner.optimizer.learning_rate`: 0.002 -> 0.0001\n"
    assert rate in (said := capsys.readouterr().out) and said.count("another") == 1


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


@pytest.mark.parametrize("last", [3, 6])
def test_sigterm_finishes_the_step_and_makes_a_checkpoint(config, last):
    with pytest.raises(SystemExit) as ended, Run("pretrain", config) as run:
        for step in run.steps():
            if step == last:
                os.kill(os.getpid(), signal.SIGTERM)
            run.log(step, {"loss": 0.0}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))
    assert ended.value.code == 143
    assert checkpoints(config.run)[-1].name == f"step-{last:06d}"
    assert (config.run / "final").is_symlink() == (last == 6)
    assert work(config, until=99) == list(range(last + 1, 7))


@pytest.fixture
def with_wandb(config, monkeypatch):
    """The configuration with Weights & Biases, offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield config.model_copy(update={"wandb": True})
    with suppress(ConnectionError):  # else it comes up in whichever later test imports what it hooks into
        wandb.teardown()


def test_environment_and_folder_decide_about_weights_and_biases(with_wandb, monkeypatch):
    """Two starts of one folder are one run, whatever the key; another folder is another one."""
    for name, value in ("PROJECT", "drawing"), ("ENTITY", "us"), ("API_KEY", "k" * 40):
        monkeypatch.setenv(f"WANDB_{name}", value)
    found = []
    for folder, until in ("one", 4), ("one", 99), ("two", 2):
        with Run("pretrain", with_wandb.model_copy(update={"run": with_wandb.root / folder})) as run:
            for step in run.steps():
                if step > until:
                    break
                run.log(step, {"loss": 0.0}, show=("loss",))
                if run.checkpoint_due:
                    run.checkpoint(lambda folder: lambda: (folder / "state").write_text("x"))
            found.append((run.wandb.id, run.wandb.project, run.wandb.entity, run.wandb.offline))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1:] == ("drawing", "us", True)


@pytest.mark.parametrize("answers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_server_that_does_not_answer_stops_nothing(with_wandb, monkeypatch, capsys, answers):
    """One that refuses connections, and one that takes them and says nothing."""
    monkeypatch.setitem(folder_module.WANDB_SECONDS, "init_timeout", 1.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen(100)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        assert work(with_wandb, until=99) == [1, 2, 3, 4, 5, 6]
    assert "Weights & Biases, online: " in capsys.readouterr().out
    assert list((with_wandb.run / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("mode", ["disabled", "sometimes"])
def test_no_mode_of_weights_and_biases_stops_a_run(with_wandb, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert work(with_wandb, until=99) == [1, 2, 3, 4, 5, 6]


def test_no_test_finds_a_key_of_the_profile():
    assert wandb.api.api_key is None


def test_run_goes_on_without_weights_and_biases(with_wandb, capsys):
    others = set(psutil.Process().children())
    with Run("pretrain", with_wandb) as run:
        for step in run.steps():
            if step == 2:
                for process in set(psutil.Process().children()) - others:
                    process.terminate()
                time.sleep(1)
            run.log(step, {"loss": 0.0}, show=("loss",))
    assert [row["step"] for row in read_metrics(with_wandb.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "no more Weights & Biases" in capsys.readouterr().out


def finish_with_model(config, until=99):
    """As `work`, with a model in each checkpoint."""

    def save(folder):
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(folder.name[:11])

    with Run("pretrain", config) as run:
        for step in run.steps():
            if step > until:
                break
            run.log(step, {"loss": 1 / step}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: save(folder))


def in_place_of_final(final, kind):
    final.unlink()
    match kind:
        case "a link to a checkpoint that is gone":
            final.symlink_to("checkpoints/step-000001/model")
        case "an absolute link of another machine":
            final.symlink_to("/elsewhere/checkpoints/step-000006/model")
        case "a copy":  # as tools leave it that follow links
            shutil.copytree(final.parent / "checkpoints" / "step-000006" / "model", final)
        case "an empty folder":
            final.mkdir()
        case "another policy":
            final.mkdir()
            (final / "config.json").write_text("mine")
        case "a file":
            final.write_text("checkpoints/step-000006/model")


@pytest.mark.parametrize(
    "kind", ["nothing", "a link to a checkpoint that is gone", "an absolute link of another machine", "a copy"]
)
def test_a_finished_run_gets_its_final_policy_back(config, kind):
    finish_with_model(config)
    in_place_of_final(config.run / "final", kind)
    assert finished(config)
    assert (config.run / "final" / "config.json").read_text() == "step-000006"
    longer = config.model_copy(update={"steps": 8})
    finish_with_model(longer)
    assert (config.run / "final" / "config.json").read_text() == "step-000008"


@pytest.mark.parametrize("kind", ["an empty folder", "another policy", "a file"])
def test_what_stands_in_place_of_final_is_named_before_a_step_and_kept(config, kind):
    finish_with_model(config)
    in_place_of_final(config.run / "final", kind)
    before = sorted(config.run.rglob("*"))
    for steps in 6, 8:
        changed = config.model_copy(update={"steps": steps})
        with pytest.raises(UserError, match=r"final: expected a link to the run's last policy, found a f.*: move it"):
            finished(changed) or finish_with_model(changed)
    assert sorted(config.run.rglob("*")) == before


def refuse(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def refuse_for_folders(real, number):
    def call(descriptor):
        return refuse(number)() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else real(descriptor)

    return call


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_storage_that_cannot_sync_a_folder_is_good_enough(config, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refuse_for_folders(os.fsync, number))
    finish_with_model(config)
    assert finished(config)


def test_a_disk_that_fails_while_it_syncs_is_not_passed_over(config, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse_for_folders(os.fsync, errno.EIO))
    with pytest.raises(UserError, match="this storage cannot hold a run: .*Input/output error"):
        finish_with_model(config)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_without_links_final_is_a_copy(config, monkeypatch, capsys, number):
    monkeypatch.setattr(Path, "symlink_to", refuse(number))
    finish_with_model(config)
    assert "final: this storage has no links" in capsys.readouterr().out
    assert finished(config)
    longer = config.model_copy(update={"steps": 10, "keep_checkpoints": 1})
    finish_with_model(longer, until=9)  # the checkpoint that `final` was a copy of is gone
    finish_with_model(longer)
    assert not (config.run / "final").is_symlink()
    assert (config.run / "final" / "config.json").read_text() == "step-000010"
    monkeypatch.undo()
    finish_with_model(config.model_copy(update={"steps": 12}))
    assert (config.run / "final").readlink().name == "model"


@pytest.mark.parametrize("operation", ["rename", "mkdir"])
def test_storage_that_cannot_hold_a_run_is_refused_before_the_first_step(config, monkeypatch, operation):
    monkeypatch.setattr(Path, operation, refuse(errno.EPERM))
    with pytest.raises(UserError, match=f"{config.run}: this storage cannot hold a run: .*Operation not permitted"):
        work(config, until=99)
    assert not (config.run / "metrics.jsonl").exists()


def test_missing_rows_of_metrics_are_said(config, capsys):
    work(config, until=5)
    file = config.run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + lines[2][:7])
    work(config, until=4)
    assert f"{file}: 2 rows are missing, of steps 3 to 4;" in capsys.readouterr().out
    file.write_text("")
    assert work(config, until=99) == [5, 6]
    assert f"{file}: 4 rows are missing, of steps 1 to 4;" in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(file)] == [5, 6]


@pytest.mark.parametrize("content", [b"", b"\n", bytes(100)])
def test_a_configuration_that_a_crash_emptied_is_written_again(config, content):
    work(config, until=4)
    file = config.run / "config.yaml"
    whole = file.read_bytes()
    file.write_bytes(content)
    assert work(config, until=99) == [5, 6]
    assert file.read_bytes() == whole
