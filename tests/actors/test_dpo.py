"""The command dpo as a whole: stored pairs and drawn ones, on real engines and learners."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image
from pyarrow import parquet

from simplear_rl import dpo
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.data import TokenizeConfig
from simplear_rl.config.dpo import DpoConfig
from simplear_rl.config.load import load_config
from simplear_rl.policy.model import load_policy
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.history import read_metrics
from simplear_rl.shapes.world import pair_samples
from simplear_rl.tokenize import tokenize
from simplear_rl.weights.snapshot import checksum
from tests.conftest import without_times
from tests.pictures import encoded, pickapic

LN_2 = np.float32(math.log(2))


@pytest.fixture(scope="module")
def stored(ray_cluster, world, tmp_path_factory):
    """Overrides for stored pairs: the worse image is always the same one, which is soon learned."""
    (shard,) = (world / "data" / "pretrain").glob("*.parquet")
    table, folder = parquet.read_table(shard), tmp_path_factory.mktemp("pairs")
    codes = table["codes"].to_pylist()
    columns = {"caption": table["caption"].to_pylist()[1:], "chosen": codes[1:], "rejected": codes[:1] * len(codes[1:])}
    parquet.write_table(pa.table(columns), folder / "0.parquet", row_group_size=10)
    return [
        f"root={world}",
        f"start={world / 'policy'}",
        f"data.sources=[{{shards: {folder}}}]",
        "data.batch_size=4",
        "data.shuffle_rows=20",
        "steps=12",
        "checkpoint_every=3",
        "wandb=false",
    ]


def config(name, values, run, *overrides):
    return load_config(DpoConfig, CONFIGS / "shapes" / f"{name}.yaml", [*values, f"run={run}", *overrides])


def weights(run):
    return checksum(dict(load_policy(run / "final")[0].named_parameters()).items())


def test_a_run_on_stored_pairs_learns_them(stored, tmp_path):
    dpo.train(config("dpo", stored, tmp_path, "steps=3", "learner.optimizer.learning_rate=1e-3"))
    first, *_, last = read_metrics(tmp_path / "metrics.jsonl")
    assert first["loss"] == LN_2 and first["margin"] == 0.0 and "accuracy" not in first
    assert last["loss"] < first["loss"] and last["pairs"] == 4
    assert {"config.yaml", "final"} <= set(os.listdir(tmp_path))


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_continues_to_the_same_weights(stored, tmp_path):
    through, killed = tmp_path / "through", tmp_path / "killed"
    dpo.train(config("dpo", stored, through))
    command = [sys.executable, "-m", "simplear_rl.dpo", *stored, f"run={killed}"]
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while driver.poll() is None and len(read_metrics(killed / "metrics.jsonl")) < 5:
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert checkpoints(killed) and len(read_metrics(killed / "metrics.jsonl")) < 12
    dpo.train(config("dpo", stored, killed))
    assert without_times(killed) == without_times(through)
    assert weights(killed) == weights(through)


@pytest.mark.slow
def test_drawn_pairs_are_the_best_against_the_worst(ray_cluster, world, often_equal, tmp_path):
    tiny = [
        f"root={world}",
        f"start={world / 'policy'}",
        *often_equal,
        "steps=3",
        "checkpoint_every=1",
        "samples_every=3",
        "rollout.prompts_per_step=4",
        "rollout.samples_per_prompt=3",
        "evaluation=null",
        "keep_best=null",
        "wandb=false",
    ]
    dpo.train(config("dpo_online", tiny, tmp_path / "one"))
    rows = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert rows[0].get("loss", LN_2) == LN_2 and "accuracy" not in rows[0]
    assert all(row["pairs"] + row["groups_without_pairs"] == 4 for row in rows)
    assert sum(row["groups_without_pairs"] for row in rows) > 0 and sum(row["pairs"] for row in rows) > 0
    assert [row["weight_version"] for row in rows] == [1, 2, 3]
    assert all(row["samples"] == 12 for row in rows)
    assert (tmp_path / "one" / "samples" / "step-000003.png").stat().st_size > 1000
    # Continued from its first checkpoint, with several engines and ranks: the same.
    two = "learner.actors.count=2", "rollout.engine.actors.count=2"
    dpo.train(config("dpo_online", tiny, tmp_path / "two", *two, "steps=1"))
    dpo.train(config("dpo_online", tiny, tmp_path / "two", *two))
    for one, other in zip(rows, read_metrics(tmp_path / "two" / "metrics.jsonl"), strict=True):
        assert one.get("loss") == pytest.approx(other.get("loss"), abs=1e-4)
        assert one["pairs"] == other["pairs"]


@pytest.mark.slow
def test_pickapic_files_become_pairs_and_a_run(stored, world, tmp_path, capsys):
    captions, chosen, rejected = pair_samples(200, 0)
    rows = [
        (caption, *(encoded(Image.fromarray(image), "PNG") for image in (good, bad)), 1.0, True)
        for caption, good, bad in zip(captions, chosen, rejected, strict=True)
    ]
    broken = {7: rows[7][1][:200], 150: b""}  # one row in a hundred
    rows = [(row[0], broken.get(i, row[1]), *row[2:]) for i, row in enumerate(rows)]
    rows[20] = (*rows[20][:3], 0.5, True)
    pickapic(tmp_path / "in" / "train.parquet", rows)
    values = [f"root={world}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'pairs'}", "pairs=drop_ties"]
    tokenize(load_config(TokenizeConfig, CONFIGS / "shapes" / "tokenize.yaml", [*values, "max_rejected=0.02"]))
    assert "197 good, 2 rejected, 1 left out" in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "pairs" / "rejected.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in listed} == {"7", "20", "150"}
    dpo.train(config("dpo", stored, tmp_path / "run", f"data.sources=[{{shards: {tmp_path / 'pairs'}}}]", "steps=2"))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == LN_2
