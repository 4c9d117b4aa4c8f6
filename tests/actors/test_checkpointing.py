"""Checkpoints that learner ranks write while they go on training."""

import errno
import os
import signal
import time

import pytest
import ray

from actors.learner import LearnerGroup
from simplear_rl import pretrain
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.folder import Run
from simplear_rl.run.history import read_metrics


@pytest.fixture
def make_config(world, tmp_path):
    def make_config(name):
        values = ["steps=6", "checkpoint_every=3", "wandb=false", "data.batch_size=8", "data.micro_batch=2"]
        values += [f"root={world}", f"run={tmp_path / name}", "learner.zero_stage=2"]
        values += ["learner.actors={count: 2, cpus: 1, threads: 1}"]
        return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", values)

    return make_config


@pytest.fixture
def before_writing(monkeypatch):
    """Lets every rank call a function of its actor before it writes, for the first checkpoint."""
    write_saved = LearnerGroup._write_saved
    left = []

    def disturbed(group):
        if left:
            function = left.pop()

            def prepare(self):
                write = self.write
                self.write = lambda: (function(self), write())

            ray.get([rank.__ray_call__.remote(prepare) for rank in group.ranks])
        write_saved(group)

    monkeypatch.setattr(LearnerGroup, "_write_saved", disturbed)
    return left.append


def state(config):
    """Of both checkpoints."""
    return {
        str(file.relative_to(config.run)): file.read_bytes()
        for folder in checkpoints(config.run)
        for file in folder.rglob("*")
        if file.suffix in (".pt", ".safetensors")
    }


@pytest.mark.slow
def test_steps_go_on_while_the_ranks_write_and_what_they_write_is_of_the_step(
    ray_cluster, make_config, before_writing, monkeypatch, tmp_path
):
    at_once, meanwhile = make_config("at once"), make_config("meanwhile")
    pretrain.train(at_once)
    release, seen, log = tmp_path / "release", [], Run.log

    def wait_for_release(self, release=release):
        while not release.exists():
            time.sleep(0.05)

    def watched(run, step, *args, **options):
        log(run, step, *args, **options)
        if step == 5:
            seen.append((run.saved, run.writing.done(), checkpoints(run.folder)))
            release.touch()

    monkeypatch.setattr(Run, "log", watched)
    before_writing(wait_for_release)
    pretrain.train(meanwhile)
    assert seen == [(0, False, [])]
    assert len(state(at_once)) == 2 * 4  # model, its learner's copy and two shards of optimizer state
    assert state(meanwhile) == state(at_once)


@pytest.mark.slow
def test_a_rank_that_dies_while_it_writes_costs_that_checkpoint_alone(ray_cluster, make_config, before_writing):
    def die(self):
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    before_writing(die)
    config = make_config("died")
    pretrain.train(config)
    assert [row["step"] for row in read_metrics(config.run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [folder.name for folder in checkpoints(config.run)] == ["step-000003", "step-000006"]


@pytest.mark.slow
def test_a_disk_that_refuses_a_rank_is_named(ray_cluster, make_config, before_writing):
    def refuse(self):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    before_writing(refuse)
    config = make_config("refused")
    with pytest.raises(UserError, match=r"step-000003: the checkpoint cannot be written: .*quota"):
        pretrain.train(config)
    assert list((config.run / "checkpoints").iterdir()) == []
