"""The newest checkpoint of a run is served, without a stop and without those that are damaged."""

import errno
import shutil
import time
from pathlib import Path

import pytest

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.config.serving import ServeConfig
from simplear_rl.run.checkpoints import begin_checkpoint
from simplear_rl.serving import following
from simplear_rl.serving.batches import build_batch
from simplear_rl.serving.drawing import Drawing
from simplear_rl.serving.following import Following, newest_weights
from simplear_rl.serving.room import served_policy
from tests.conftest import make_policy


@pytest.fixture
def checkpoint(tmp_path):
    """Adds a checkpoint to a run folder."""

    def checkpoint(step: int) -> Path:
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        policy = make_policy(tmp_path / f"policy-{step}", seed=step)
        begin_checkpoint(folder, lambda partial: lambda: shutil.copytree(policy, partial / "model"))()
        return folder

    return checkpoint


def test_a_server_starts_from_the_newest_intact_checkpoint(policy, checkpoint, tmp_path):
    config = ServeConfig(policy=policy, tokenizer=tmp_path, follow=tmp_path / "run")
    assert served_policy(config) == policy
    first, second = checkpoint(1), checkpoint(2)
    (second / "model" / "model.safetensors").write_bytes(b"")
    assert served_policy(config) == first / "model"


def test_new_checkpoints_are_served_and_damaged_ones_are_not(policy, checkpoint, tmp_path):
    run = tmp_path / "run"
    assert newest_weights(run, "float32") is None
    checkpoint(1)
    served, weights = newest_weights(run, "float32")
    assert weights.version == 1 and newest_weights(run, "float32", served) is None
    damaged = checkpoint(2) / "model" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8] + b"12345678")
    assert newest_weights(run, "float32")[1].version == 1 and newest_weights(run, "float32", served) is None
    drawing = Drawing(build_batch(policy, EngineConfig(type="transformers")))
    engine = drawing.batch.engine
    Following(run, 0.01, "float32", drawing)
    assert engine.version == 1  # from the first image on
    for step in 1, 3:
        if step == 3:
            checkpoint(3)
        while engine.version != step:
            time.sleep(0.01)
        assert engine.checksum() == newest_weights(run, "float32")[1].checksum
    shutil.rmtree(run)  # and a training starts over
    checkpoint(2)
    while engine.version != 2:
        time.sleep(0.01)
    assert engine.checksum() == newest_weights(run, "float32")[1].checksum
    drawing.failure = RuntimeError("ends the thread")


def test_storage_that_is_away_for_a_while_is_looked_at_again(policy, checkpoint, tmp_path, monkeypatch, caplog):
    checkpoint(1)
    look, looks = following.checkpoints, iter(range(3))

    def away(run):
        if next(looks, 3) < 3:
            raise OSError(errno.ESTALE, "Stale file handle")
        return look(run)

    monkeypatch.setattr(following, "checkpoints", away)
    drawing = Drawing(build_batch(policy, EngineConfig(type="transformers")))
    Following(tmp_path / "run", 0.01, "float32", drawing)
    while drawing.batch.engine.version != 1:
        time.sleep(0.01)
    assert caplog.text.count("run: cannot be read, the weights before are served: [Errno 116] Stale") == 3
    drawing.failure = RuntimeError("ends the thread")
