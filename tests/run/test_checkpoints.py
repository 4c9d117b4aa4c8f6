"""Checkpoints that are damaged, killed in the middle, or for which there is no room; and which of them stay."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig, SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.files import count_weights
from simplear_rl.policy.model import load_policy
from simplear_rl.run import checkpoints as module
from simplear_rl.run.checkpoints import begin_checkpoint, checkpoints, damage, newest_intact, remove, size, step_of
from simplear_rl.run.folder import Run, finished
from simplear_rl.run.history import read_metrics, require_same_learner
from tests.conftest import without_times


@pytest.fixture
def make_config(tmp_path, policy):
    """Six steps with a checkpoint after every second, and overrides."""

    def make_config(*overrides):
        values = [f"root={tmp_path}", f"start={policy}", "steps=6", "checkpoint_every=2", "wandb=false", *overrides]
        return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", values)

    return make_config


def save(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w" * 5000)
    (folder / "state").write_bytes(b"s" * 3000)


def work(config, until=99, save=save, loss=lambda step: 1 / step):
    """Run the steps up to `until`; returns those that were done."""
    done = []
    with Run("pretrain", config) as run:
        for step in run.steps():
            if step > until:
                break
            run.log(step, {"loss": loss(step)}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: save(folder))
            done.append(step)
    return done


def names(config):
    return [folder.name for folder in checkpoints(config.run)]


DAMAGES = {
    "a changed byte": lambda f: (f / "state").write_bytes(b"s" * 2999 + b"x"),
    "a file cut short": lambda f: (f / "model" / "weights").write_bytes(b"w" * 4000),
    "an empty file": lambda f: (f / "state").write_bytes(b""),
    "a file gone": lambda f: (f / "model" / "weights").unlink(),
    "a file too many": lambda f: (f / "model" / "more").write_text("x"),
    "no checksums": lambda f: (f / "checksums.json").unlink(),
    "checksums cut short": lambda f: (f / "checksums.json").write_text("{"),
    "checksums of another kind": lambda f: (f / "checksums.json").write_text("[1]"),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_it_used(make_config, capsys, how):
    config = make_config()
    work(config, until=4)
    newest = config.run / "checkpoints" / "step-000004"
    DAMAGES[how](newest)
    before = {file.name: file.stat().st_size for file in newest.rglob("*")}
    assert work(config) == [3, 4, 5, 6]
    assert f"{newest}: damaged: " in capsys.readouterr().out
    aside = newest.with_name("step-000004.damaged")
    assert {file.name: file.stat().st_size for file in aside.rglob("*")} == before
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_storage_does_not_let_be_read_is_left_as_it_is(make_config, monkeypatch):
    config = make_config()
    work(config, until=4)

    def refuse(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr("simplear_rl.run.checkpoints._sha256", refuse)
    with pytest.raises(UserError, match=r"step-000004: cannot be read: .*Permission denied.*nothing was changed"):
        newest_intact(config.run)
    assert names(config) == ["step-000002", "step-000004"]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in 999_999, 1_000_000, 5:
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert [step_of(folder) for folder in checkpoints(tmp_path)] == [5, 999_999, 1_000_000]


def test_an_expired_checkpoint_that_cannot_be_deleted_whole_stops_nothing(make_config, monkeypatch, capsys):
    """As on NFS, where a file that is open stays under another name."""
    config = make_config()
    work(config, until=2)

    def refuse(folder):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr("simplear_rl.run.checkpoints.shutil.rmtree", refuse)
        remove(config.run / "checkpoints" / "step-000002")
    assert "expired, and cannot be deleted whole yet: " in capsys.readouterr().out
    assert names(config) == []
    assert work(config, until=2) == [1, 2]
    assert names(config) == ["step-000002"] and not list((config.run / "checkpoints").glob("*.partial"))


def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(make_config):
    config = make_config()
    work(config)
    assert finished(config)
    DAMAGES["a changed byte"](config.run / "checkpoints" / "step-000006")
    assert not finished(config)
    assert work(config) == [5, 6]
    assert finished(config)
    assert (config.run / "final" / "weights").exists()


def test_several_damaged_checkpoints_are_all_set_aside(make_config):
    config = make_config()
    work(config)
    for folder in checkpoints(config.run):
        DAMAGES["an empty file"](folder)
    assert newest_intact(config.run) is None
    assert work(config, until=4) == [1, 2, 3, 4]
    DAMAGES["an empty file"](config.run / "checkpoints" / "step-000004")
    assert newest_intact(config.run).name == "step-000002"
    kept = sorted(path.name for path in (config.run / "checkpoints").iterdir())
    assert kept == ["step-000002", "step-000004.damaged", "step-000004.damaged-2", "step-000006.damaged"]


def test_checksums_are_those_of_sha256sum(make_config):
    config = make_config()
    work(config, until=2)
    folder = config.run / "checkpoints" / "step-000002"
    sums = json.loads((folder / "checksums.json").read_text())
    assert sums.keys() == {"model/weights", "state"}
    told = subprocess.run(["sha256sum", *sums], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in told.splitlines()] == list(sums.values())


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["keep_checkpoints=1"], [12]),
        (["keep_checkpoints=2"], [10, 12]),
        (["keep_checkpoints=1", "keep_every=4"], [4, 8, 12]),
        (["keep_checkpoints=1", "keep_best.metric=loss"], [6, 12]),  # of a loss the lowest
        (["keep_checkpoints=2", "keep_best={metric: loss, prefer: highest}"], [2, 10, 12]),
        (["keep_checkpoints=1", "keep_every=10", "keep_best={metric: loss, prefer: lowest}"], [6, 10, 12]),
    ],
)
def test_last_best_and_every_nth_checkpoint_stay(make_config, overrides, kept):
    config = make_config("steps=12", *overrides)
    # Means over the two steps of a checkpoint; step 9 alone is lower than any of them.
    losses = [9, 9, 5, 5, 2, 2, 4, 4, 1, 8, 6, 6]
    work(config, loss=lambda step: float(losses[step - 1]))
    assert names(config) == [f"step-{step:06d}" for step in kept]


def test_a_metric_that_is_not_logged_is_named_at_the_first_step(make_config):
    with pytest.raises(UserError, match=r"keep_best.metric: 'reward' is not logged; there are loss"):
        work(make_config("keep_best={metric: reward}"))


def evaluated(config, scores):
    """A run with the scores of some steps; returns the checkpoints that stay."""
    with Run("grpo", config, ["evaluation_overall"]) as run:
        for step in run.steps():
            found = {"evaluation_overall": scores[step]} if step in scores else {}
            run.log(step, {"loss": 1.0} | found, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: save(folder))
    return names(config)


BEST = "keep_checkpoints=1", "keep_best={metric: evaluation_overall}"


def test_the_best_by_a_metric_that_not_every_step_logs(make_config):
    kept = evaluated(make_config("steps=12", *BEST), {3: 0.2, 6: 0.7, 9: 0.6, 12: 0.5})
    assert kept == ["step-000006", "step-000012"]


def test_a_score_is_that_of_the_nearest_weights(make_config):
    """The last checkpoint follows sooner than others: the score of the one before is not its own."""
    scores = {2: 0.3, 4: 0.4, 5: 0.6, 6: 0.55}
    evaluated(make_config("steps=5", *BEST), scores)
    assert evaluated(make_config("steps=6", *BEST), scores) == ["step-000005", "step-000006"]


def test_without_a_value_there_is_no_best(make_config):
    assert evaluated(make_config("steps=4", *BEST), {}) == ["step-000004"]


def test_a_score_that_there_is_not_is_named(make_config):
    config = make_config("steps=13", "keep_best={metric: evaluation_overal}")
    message = "'evaluation_overal' is not logged; there are evaluation_overall, loss"
    with pytest.raises(UserError, match=message), Run("grpo", config, ["evaluation_overall"]) as run:
        for step in run.steps():
            run.log(step, {"loss": 1.0}, show=("loss",))


def disk(monkeypatch, free):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free()))


def test_no_room_for_a_checkpoint_is_said_before_the_run_begins(make_config, policy, monkeypatch):
    config = make_config()
    disk(monkeypatch, lambda: 10_000)
    needed = 16 * sum(parameter.numel() for parameter in load_policy(policy)[0].parameters())
    with pytest.raises(UserError) as error:
        work(config)
    assert f"{config.run}: a checkpoint takes about {needed:,} bytes, 10,000 are free" in str(error.value)
    assert not config.run.exists()


def test_room_is_looked_for_as_soon_as_a_checkpoint_is_written(make_config, monkeypatch):
    """The error comes while little would be lost, and makes no demand that the last checkpoint does not."""
    config = make_config()
    done = lambda: len(read_metrics(config.run / "metrics.jsonl"))  # noqa: E731
    disk(monkeypatch, lambda: 10**12 if done() < 4 or not (config.run / "checkpoints/step-000004").exists() else 100)
    with pytest.raises(UserError, match=r"a checkpoint takes about 8,\d\d\d bytes, 100 are free"):
        work(config)
    assert done() < 7
    assert names(config) == ["step-000002", "step-000004"]
    monkeypatch.undo()
    assert work(config) == [5, 6]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_leaves_the_checkpoint_before_and_no_partial_one(make_config, number):
    config = make_config()

    def fail(folder):
        if folder.name.startswith("step-000004"):
            (folder / "half").write_bytes(b"x" * 1000)
            raise OSError(number, os.strerror(number))
        save(folder)

    with pytest.raises(UserError, match=rf"step-000004: the checkpoint cannot be written: .*{os.strerror(number)}"):
        work(config, save=fail)
    assert [path.name for path in (config.run / "checkpoints").iterdir()] == ["step-000002"]
    assert work(config) == [3, 4, 5, 6]


def test_steps_go_on_while_a_checkpoint_is_written_and_the_next_one_waits_for_it(make_config):
    config, begun, release, writing = make_config(), Event(), Event(), []

    def slow(folder):
        writing.append(folder.name[:11])
        begun.set()
        assert release.wait(30)
        save(folder)
        writing.remove(folder.name[:11])

    with Run("pretrain", config) as run:
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=("loss",))
            if step == 4:  # two steps after a checkpoint that is still being written
                assert begun.wait(30)
                assert (run.saved, writing, names(config)) == (0, ["step-000002"], [])
                release.set()
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: slow(folder))
                assert len(writing) <= 1
                assert run.saved == step - 2
    assert (run.saved, names(config)) == (6, ["step-000004", "step-000006"])
    assert damage(checkpoints(config.run)[-1]) is None
    assert finished(config)


def test_a_checkpoint_that_fails_is_an_error_before_the_next_step(make_config):
    config, done = make_config("steps=60"), []

    def fail(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"step-000002: the checkpoint cannot be written"), Run("x", config) as run:
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=("loss",))
            done.append(step)
            if step == 2:
                run.checkpoint(lambda folder: lambda: fail(folder))
                wait([run.writing])
    assert done == [1, 2]


@pytest.mark.parametrize("end", ["error", "SIGTERM"])
def test_the_checkpoint_under_way_is_finished_before_the_run_ends(make_config, end):
    config = make_config()

    def slow(folder):
        time.sleep(0.5)
        save(folder)

    with pytest.raises((SystemExit, ZeroDivisionError)), Run("pretrain", config) as run:
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: slow(folder))
                if end == "error":
                    raise ZeroDivisionError
                os.kill(os.getpid(), signal.SIGTERM)
    assert (step, names(config)) == (2, ["step-000002"])
    assert damage(checkpoints(config.run)[0]) is None


def test_an_error_of_a_step_is_not_hidden_by_that_of_the_checkpoint(make_config, capsys):
    with pytest.raises(ZeroDivisionError), Run("pretrain", make_config()) as run:
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(lambda folder: lambda: folder.rmdir())
                raise ZeroDivisionError
    assert "the last checkpoint was not finished: " in capsys.readouterr().out


def test_what_a_killed_writer_still_writes_is_in_no_other_checkpoint(make_config):
    """A learner that was lost may go on for a moment, while the stage has begun again."""
    config, left = make_config(), []
    with pytest.raises(RuntimeError, match="lost"), Run("pretrain", config) as run:
        for step in run.steps():
            run.log(step, {"loss": 0.0}, show=("loss",))
            if run.checkpoint_due:
                run.checkpoint(
                    lambda folder: left.append(folder) or (lambda: (_ for _ in ()).throw(RuntimeError("lost")))
                )
                wait([run.writing])

    def with_ghost(folder):
        left[0].mkdir()
        (left[0] / "state").write_text("half")
        save(folder)

    assert work(config, save=with_ghost, until=2) == [1, 2]
    assert damage(checkpoints(config.run)[0]) is None
    assert work(config) == [3, 4, 5, 6]
    assert not left[0].exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_that_is_really_full_is_named_whatever_the_writer_raises(small_disk):
    target = small_disk / "checkpoints" / "step-000002"
    begin_checkpoint(target.with_name("step-000001"), lambda folder: lambda: save(folder))()
    finish = begin_checkpoint(target, lambda folder: lambda: torch.save(torch.zeros(2_000_000), folder / "state.pt"))
    with pytest.raises(UserError, match=r"step-000002: the checkpoint cannot be written") as error:
        finish()
    assert isinstance(error.value.__cause__, RuntimeError)  # torch's, without an error number
    assert [path.name for path in target.parent.iterdir()] == ["step-000001"]
    assert damage(target.with_name("step-000001")) is None


def test_weights_are_counted_from_headers_alone(policy):
    assert count_weights(policy) == sum(parameter.numel() for parameter in load_policy(policy)[0].parameters())


def test_size_is_that_of_all_files(tmp_path):
    save(tmp_path)
    assert size(tmp_path) == 8000


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ("learner.zero_stage=0", "learner.zero_stage=2", "learner.zero_stage: 2, but .* were written with 0"),
        ("learner.dtype=float32", "learner.dtype=bfloat16", "learner.dtype: bfloat16, but .* written with float32"),
        ("learner.actors.count=1", "learner.actors.count=2", "learner.actors.count: 2, but .* were written with 1"),
    ],
)
def test_a_learner_that_cannot_load_the_last_checkpoint_is_refused(make_config, before, now, message):
    stage = ["data.micro_batch=32", *(["learner.zero_stage=1"] if "zero_stage" not in before else [])]
    config = make_config(*stage, before)
    work(config, until=2)
    written = {file: file.read_bytes() for file in config.run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=message):
        work(make_config(*stage, now))
    assert {file: file.read_bytes() for file in config.run.rglob("*") if file.is_file()} == written


def test_a_schedule_goes_on_in_the_optimizer_steps_that_it_was_counted_in(tmp_path):
    def config(*values):
        return load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", [f"root={tmp_path}", *values])

    before = config().model_dump(mode="json")
    require_same_learner(before, config("algorithm.minibatches=2"))  # a constant rate counts nothing
    for counted in "learner.optimizer.schedule=cosine", "learner.optimizer.warmup_steps=3":
        require_same_learner(before, config(counted))
        with pytest.raises(UserError, match="algorithm.minibatches: 2, but .* were written with 1"):
            require_same_learner(before, config(counted, "algorithm.minibatches=2"))


TRAINER = """
import os, random, signal, socket, sys, time
from pathlib import Path

import torch
from simplear_rl.run.checkpoints import checkpoints, newest_intact, step_of
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.data.batches import TokenDataset
from simplear_rl.learning import supervised
from simplear_rl.learning.learner import Learner
from simplear_rl.run.folder import Run

torch.set_num_threads(1)
KILLS = int(sys.argv[1])
config = load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", sys.argv[2:])


def train():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    learner = Learner(config.learner, config.start, config.steps, config.passes, rendezvous=address)
    data = TokenDataset(config.data, learner.encode, learner.layout, config.seed, 0, 1)
    with Run("pretrain", config) as run:
        if run.last_checkpoint:
            learner.load(run.last_checkpoint)
        for step in run.steps():
            run.log(step, supervised.train(learner, data.batch(step)), show=("loss",))
            run.checkpoint(learner.save)


def fork():
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(config.root / "log", "a")
        train()
        os._exit(0)
    return child


random.seed(0)
begun = lambda: {path.name for path in (config.run / "checkpoints").glob("*.partial")}
newest = unfinished = 0
seconds = 0.0  # that writing one takes
for kill in range(KILLS):
    left, child = begun(), fork()
    while not begun() - left:  # a checkpoint is being written
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "trained to the end"
    if kill:
        time.sleep(random.random() * 1.5 * seconds)
    else:
        start = time.monotonic()
        while not checkpoints(config.run):
            time.sleep(0.001)
        seconds = time.monotonic() - start
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    unfinished += bool(begun() - left)
    last = newest_intact(config.run)
    assert not list((config.run / "checkpoints").glob("*.damaged"))
    step = step_of(last) if last else 0
    assert step >= newest, (step, newest)
    newest = step
assert os.waitstatus_to_exitcode(os.waitpid(fork(), 0)[1]) == 0
print(newest, unfinished)
"""


@pytest.mark.slow
def test_a_training_killed_while_it_writes_checkpoints_ends_with_the_same_weights(tmp_path, world):
    """A real learner with a checkpoint after every step, and 50 kills (SIGKILL) at random moments of writing."""

    def train(run, kills):
        values = ["steps=150", "checkpoint_every=1", "wandb=false", "data.batch_size=4", "data.micro_batch=4"]
        overrides = [f"root={tmp_path}", f"run={run}", f"start={world}/policy", *values]
        overrides.append(f"data.sources=[{{shards: {world}/data/pretrain}}]")
        done = subprocess.run(
            [sys.executable, "-c", TRAINER, str(kills), *overrides],
            capture_output=True,
            text=True,
            timeout=550,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [int(number) for number in done.stdout.splitlines()[-1].split()]

    train(tmp_path / "undisturbed", 0)
    newest, unfinished = train(tmp_path / "killed", 50)
    print(f"50 kills, {unfinished} of them left a checkpoint unfinished; step {newest} was the newest")
    assert unfinished > 25
    assert newest > 5
    weights = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("undisturbed", "killed")]
    assert weights[0] == weights[1]
    assert without_times(tmp_path / "undisturbed") == without_times(tmp_path / "killed")
