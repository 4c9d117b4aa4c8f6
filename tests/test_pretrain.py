"""The pretraining command as a whole: real Ray, real DeepSpeed, several sources, two ranks."""

import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pytest
import ray
from pyarrow import parquet

from simplear_rl import pretrain
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import SupervisedConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.model import load_policy
from simplear_rl.run.checkpoints import checkpoints
from simplear_rl.run.history import read_metrics
from simplear_rl.weights.snapshot import checksum


@pytest.fixture(scope="module")
def settings(ray_cluster, world, tmp_path_factory):
    """Two sources with row groups of 5, one of them with short captions; an epoch of the first is 6 steps."""
    folder = tmp_path_factory.mktemp("sources")
    (shard,) = (world / "data" / "pretrain").glob("*.parquet")
    table = parquet.read_table(shard)
    first, second = table.slice(0, 40), table.slice(40)
    short = pa.array([text if i % 3 else None for i, text in enumerate(["a circle"] * 40)])
    for name, part in ("a", first.append_column("short_caption", short)), ("b", second):
        (folder / name).mkdir()
        parquet.write_table(part, folder / name / "0.parquet", row_group_size=5)
    return [
        f"root={world}",
        f"data.sources=[{{shards: {folder}/a, weight: 5}}, {{shards: {folder}/b}}]",
        "data.batch_size=8",
        "data.micro_batch=2",
        "data.shuffle_rows=12",
        "learner.actors={count: 2, cpus: 1, threads: 1}",
        "learner.zero_stage=2",
        "steps=16",
        "checkpoint_every=5",
        "sample_prompts=[]",
        "wandb=false",
    ]


def config(settings, run, *overrides):
    return load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", [*settings, f"run={run}", *overrides])


@pytest.mark.slow
def test_run_whose_driver_was_killed_continues_to_the_same_losses_and_weights(settings, tmp_path):
    through, killed = tmp_path / "through", tmp_path / "killed"
    pretrain.train(config(settings, through))

    command = [sys.executable, "-m", "simplear_rl.pretrain", *settings, f"run={killed}"]
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while driver.poll() is None and len(read_metrics(killed / "metrics.jsonl")) < 7:
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert 7 <= len(read_metrics(killed / "metrics.jsonl")) < 16
    assert checkpoints(killed)

    pretrain.train(config(settings, killed))
    rows = {run: read_metrics(run / "metrics.jsonl") for run in (through, killed)}
    assert [row["step"] for row in rows[killed]] == list(range(1, 17))
    for name in "loss", "grad_norm", "learning_rate", "truncated":
        assert [row[name] for row in rows[killed]] == [row[name] for row in rows[through]], name
    assert all("tokens_per_second" in row for row in rows[killed])
    ends = [dict(load_policy(run / "final")[0].named_parameters()) for run in (through, killed)]
    assert checksum(ends[0].items()) == checksum(ends[1].items())


@pytest.mark.slow
def test_caption_that_is_too_long_ends_the_run_with_its_row(settings, world, tmp_path):
    (shard,) = (world / "data" / "pretrain").glob("*.parquet")
    captions = ["a circle"] * 7 + ["a circle" + " and a circle" * 20]
    codes = parquet.read_table(shard)["codes"].slice(0, 8)
    parquet.write_table(pa.table({"caption": captions, "codes": codes}), tmp_path / "0.parquet")
    # The row falls to one rank only: the other one must not be waited for.
    source = [f"data.sources=[{{shards: {tmp_path}}}]", "data.drop_caption=0"]
    with pytest.raises(UserError, match=r"0\.parquet: row 7: the caption has 65 tokens .* there is room for 62"):
        pretrain.train(config(settings, tmp_path / "run", *source))
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []
    pretrain.train(config(settings, tmp_path / "run", *source, "data.long_caption=truncate", "steps=2"))
    assert [row["truncated"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1.0, 1.0]
