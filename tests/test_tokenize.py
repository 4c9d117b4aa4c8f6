"""The tokenizer command: what is written, what is refused, and that being killed loses and repeats nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
import webdataset
from pyarrow import parquet

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.data import TokenDataConfig, TokenizeConfig
from simplear_rl.config.load import load_config
from simplear_rl.data.batches import TokenDataset
from simplear_rl.data.images import to_square
from simplear_rl.data.listing import find_files
from simplear_rl.data.shard_writer import ShardWriter
from simplear_rl.data.sources import divide, read_batches
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import read_encoder, read_layout
from simplear_rl.tokenize import tokenize
from simplear_rl.tokenizers.cosmos import CosmosTokenizer
from simplear_rl.tokenizers.fsq import FsqTokenizer, export
from tests import pictures

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """With the 100 codes and, for 32 pixels, the 4 x 4 grid of the tests' policy."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    export(FsqTokenizer((5, 5, 4), channels=16), folder)
    return folder


def overrides(tmp_path, tokenizer, *more):
    values = {"root": tmp_path, "input": tmp_path / "in", "output": tmp_path / "out", "tokenizer": tokenizer}
    return [*(f"{key}={value}" for key, value in values.items()), "size=32", "batch_size=4", "shard_size=10", *more]


def config(tmp_path, tokenizer, *more):
    return load_config(
        TokenizeConfig, CONFIGS / "shapes" / "tokenize.yaml", overrides(tmp_path, tokenizer, "world=null", *more)
    )


def written(output):
    """Caption by id of all rows in all shards, and file and key of what was rejected; nothing occurs twice."""
    rows = [row for file in sorted(output.glob("*.parquet")) for row in parquet.read_table(file).to_pylist()]
    listed = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    good = {row["id"]: row["caption"] for row in rows}
    bad = {(entry["file"], entry["key"]) for entry in listed}
    assert len(good) == len(rows) and len(bad) == len(listed)
    assert all(entry["reason"] for entry in listed)
    return good, bad


@pytest.mark.parametrize("kind", ["jsonl", "tar", "parquet"])
def test_shards_hold_the_codes_of_every_good_image(ray_cluster, kind, tmp_path, tokenizer, policy, capsys):
    good, bad = pictures.write(kind, tmp_path / "in", 50, bad_every=7)
    tokenize(config(tmp_path, tokenizer, "actors.count=2"))
    assert f"{len(good)} good, {len(bad)} rejected" in capsys.readouterr().out
    assert written(tmp_path / "out") == (good, bad)
    shard = parquet.read_table(tmp_path / "out" / "00001-00000.parquet")
    assert shard.schema.field("codes").type == pa.list_(pa.uint16())
    about = json.loads(shard.schema.metadata[b"simplear_rl"])
    assert (about["rows"], about["columns"], about["codebook_size"]) == (4, 4, 100)
    assert about["tokenizer"].startswith("sha256:")
    number = int(shard["caption"][0].as_py().removeprefix("picture "))
    image = to_square(pictures.sample(number, bad_every=7)[0], 32)
    assert shard["codes"][0].as_py() == CosmosTokenizer(tokenizer).encode(image[None])[0].tolist()
    layout, encode = read_layout(policy), read_encoder(policy)
    sources = [{"shards": tmp_path / "out"}]
    data = TokenDataset(TokenDataConfig(sources=sources, batch_size=1, micro_batch=1), encode, layout, seed=0)
    assert sum(sum(source.sizes) for source in data.sources) == len(good)
    assert all(len(data.batch(step).ids) == 1 for step in range(1, len(good) + 1))  # every row passes its checks


def test_a_data_set_of_the_hub_is_input_as_well(ray_cluster, tmp_path, tokenizer, monkeypatch):
    snapshot = tmp_path / "datasets--owner--pictures" / "snapshots" / ("0" * 40)  # as the Hub's client lays it out
    good, bad = pictures.write("parquet", snapshot, 20, bad_every=7)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    tokenize(config(tmp_path, tokenizer, "input=owner/pictures"))
    assert written(tmp_path / "out") == (good, bad)
    with pytest.raises(UserError, match=r"nobody/nothing: no folder of that name, and the Hugging Face Hub does not"):
        tokenize(config(tmp_path, tokenizer, "input=nobody/nothing"))


def test_a_finished_output_needs_no_actors(tmp_path, tokenizer, capsys):
    good, bad = filled(tmp_path, tokenizer)
    tokenize(config(tmp_path, tokenizer, "actors.count=1000"))
    assert f"{len(good)} good, {len(bad)} rejected" in capsys.readouterr().out
    assert written(tmp_path / "out") == (good, bad)


def filled(tmp_path, tokenizer, count=20, bad_every=4):
    """An output folder that was filled without Ray."""
    good, bad = pictures.write("jsonl", tmp_path / "in", count, bad_every)
    refill(tmp_path, tokenizer)
    return good, bad


def refill(tmp_path, tokenizer):
    """Make the missing shards without Ray."""
    settings = config(tmp_path, tokenizer)
    parts = divide(find_files(settings.input, settings.files), settings.shard_size)
    shards = ShardWriter(settings, parts)
    shards.begin()
    for part in shards.missing():
        rows = [row | {"codes": np.zeros((len(row["images"]), 16), np.uint16)} for row in read_batches(part, 32, 4)]
        for row in reversed(rows):  # actors return them in any order
            shards.add(row)


def test_a_part_without_good_samples_has_an_empty_shard(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("{}\n" * 10)
    settings = config(tmp_path, tokenizer)
    parts = divide(find_files(settings.input, "**/*"), 10)
    shards = ShardWriter(settings, parts)
    shards.begin()
    for row in read_batches(parts[0], 32, 4):
        assert shards.add(row | {"codes": np.empty((0, 16), np.uint16)}) == (
            0,
            ["no column for the image (set image_column), found none"] * 10,
        )
    assert shards.missing() == []
    with pytest.raises(UserError, match="10 of 10 samples rejected, allowed is max_rejected=1 and one good sample"):
        tokenize(settings)
    assert parquet.read_metadata(settings.output / "00000-00000.parquet").num_rows == 0


def test_too_many_bad_samples_fail_at_the_end(tmp_path, tokenizer):
    filled(tmp_path, tokenizer)
    tokenize(config(tmp_path, tokenizer, "max_rejected=0.25"))
    with pytest.raises(UserError, match="5 of 20 samples rejected, allowed is max_rejected=0.2"):
        tokenize(config(tmp_path, tokenizer, "max_rejected=0.2"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("size=40", "shards of another size: 32, now 40"),
        ("batch_size=5", "shards of another batch_size: 4, now 5"),
        ("shard_size=11", "shards of another shard_size: 10, now 11"),
        ("files=*.jsonl", r"shards of another files: \*\*/\*, now \*\.jsonl"),
        ("min_size=16", "shards of another min_size: None, now 16"),
        ("caption_column=caption", "shards of another caption_column: None, now caption"),
        ("caption_choice=random", "shards of another caption_choice: None, now random"),
        ("input=${root}/in/part-0.jsonl", "shards of another input: .*/in, now .*/in/part-0.jsonl"),
    ],
)
def test_changed_configuration_is_refused(tmp_path, tokenizer, changed, message):
    filled(tmp_path, tokenizer)
    with pytest.raises(UserError, match=message):
        tokenize(config(tmp_path, tokenizer, changed))


def test_the_seed_counts_where_captions_are_drawn(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    pictures.write("jsonl", tmp_path / "in" / "a", 4, bad_every=10)
    parts = divide(find_files(tmp_path / "in", "**/*"), 10)
    ShardWriter(config(tmp_path, tokenizer, "caption_choice=random"), parts).begin()
    with pytest.raises(UserError, match="shards of another seed: 0, now 1"):
        tokenize(config(tmp_path, tokenizer, "caption_choice=random", "seed=1"))
    (tmp_path / "out" / "manifest.json").unlink()
    ShardWriter(config(tmp_path, tokenizer), parts).begin()
    assert ShardWriter(config(tmp_path, tokenizer, "seed=1"), parts).begun


def test_files_that_cannot_be_read_are_listed_and_tried_again(tmp_path, tokenizer):
    pictures.write("tar", tmp_path / "in", 8, bad_every=10)
    settings = config(tmp_path, tokenizer)
    second = tmp_path / "in" / "part-1.tar"
    second.rename(tmp_path / "aside.tar")
    second.symlink_to("/proc/self/mem")  # may be opened, but not read

    def fill():
        parts = divide(find_files(settings.input, "**/*"), 10)
        shards = ShardWriter(settings, parts)
        shards.begin()
        for part in shards.missing():
            for row in read_batches(part, 32, 4):
                shards.add(row | {"codes": np.zeros((len(row["images"]), 16), np.uint16)})
        return shards.finish()

    reason = "the file cannot be read: Input/output error"
    for _ in range(2):
        assert fill() == (4, [{"file": "part-1.tar", "key": "", "reason": reason}])
        assert len(list(settings.output.glob("*.parquet"))) == 1
    second.unlink()
    (tmp_path / "aside.tar").rename(second)
    assert fill() == (8, [])
    second.rename(tmp_path / "aside.tar")
    second.symlink_to("/proc/self/mem")
    assert fill() == (8, [])  # its shard is there
    second.unlink()
    second.write_bytes((tmp_path / "aside.tar").read_bytes() + b"\0")
    with pytest.raises(UserError, match="shards of another size of part-1.tar"):
        fill()


def test_a_file_that_fails_in_the_middle_has_no_shard(tmp_path, tokenizer):
    pictures.write("tar", tmp_path / "in", 8, bad_every=10)
    settings = config(tmp_path, tokenizer)
    parts = divide(find_files(settings.input, "**/*"), 10)
    shards = ShardWriter(settings, parts)
    shards.begin()
    rows = [row | {"codes": np.zeros((len(row["images"]), 16), np.uint16)} for row in read_batches(parts[0], 32, 3)]
    assert [row["number"] for row in rows] == [0, 1]
    shards.add(rows[0])
    assert shards.add(rows[1] | {"unreadable": "the file cannot be read: Input/output error"})[0] == 0
    assert shards.finish()[1][0]["file"] == "part-0.tar"
    assert ShardWriter(settings, parts).missing() == parts


def test_an_unreadable_file_costs_the_others_nothing(ray_cluster, tmp_path, tokenizer, capsys):
    good, _ = pictures.write("tar", tmp_path / "in", 20, bad_every=100)
    (tmp_path / "in" / "part-2.tar").symlink_to("/proc/self/mem")
    (tmp_path / "in" / "part-3.tar").symlink_to(tmp_path / "gone.tar")
    tokenize(config(tmp_path, tokenizer))
    shown = capsys.readouterr().out
    assert "passed over, links that lead nowhere (No such file or directory): 1 (part-3.tar)" in shown
    assert "the first samples are bad: part-2.tar: the file cannot be read: Input/output error" in shown
    assert "rejected: 1 like: the file cannot be read: Input/output error" in shown
    assert written(tmp_path / "out") == (good, {("part-2.tar", "")})


@pytest.mark.parametrize("kind", ["jsonl", pytest.param("tar", marks=pytest.mark.slow)])
def test_too_many_bad_samples_end_the_command_early(ray_cluster, kind, tmp_path, tokenizer):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "small.png").write_bytes(pictures.encoded(pictures.picture(0, 20, 20), "PNG"))
    (folder / "large.png").write_bytes(pictures.encoded(pictures.picture(0, 40, 40), "PNG"))
    names = ["large"] + ["small"] * 39 + ["large"] * 160
    if kind == "jsonl":
        lines = (json.dumps({"image": f"{name}.png", "caption": "x"}) + "\n" for name in names)
        (folder / "x.jsonl").write_text("".join(lines))
    else:
        for number in range(20):
            with webdataset.TarWriter(str(folder / f"{number:02d}.tar")) as tar:
                for row in range(10):
                    image = (folder / f"{names[10 * number + row]}.png").read_bytes()
                    tar.write({"__key__": str(row), "png": image, "txt": "x"})
    total = 200 if kind == "jsonl" else "(at most )?2[0-9][0-9]"  # tars may be counted by then, or all be read
    message = rf"out: \d+ of {total} samples rejected, allowed is max_rejected=0.05 .*min_size=1 enlarges"
    with pytest.raises(UserError, match=message) as error:
        tokenize(config(tmp_path, tokenizer, "max_rejected=0.05"))
    assert " like: 20 x 20 pixels: the shorter side is below 32" in str(error.value)
    if kind == "jsonl":
        assert not (tmp_path / "out" / "rejected.jsonl").exists()
        assert len(list((tmp_path / "out").glob("*.parquet"))) < 20
    tokenize(config(tmp_path, tokenizer, "max_rejected=0.5"))  # goes on
    assert len(written(tmp_path / "out")[1]) == 39
    tokenize(config(tmp_path, tokenizer, "max_rejected=0", "min_size=20", "output=${root}/enlarged"))
    assert len(written(tmp_path / "enlarged")[0]) == 200


def test_changed_input_and_tokenizer_are_refused(tmp_path, tokenizer):
    filled(tmp_path, tokenizer)
    (tmp_path / "in" / "part-2.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="another size of part-2.jsonl: None, now 3"):
        tokenize(config(tmp_path, tokenizer))
    (tmp_path / "in" / "part-2.jsonl").unlink()
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    export(FsqTokenizer((5, 5, 4), channels=16), tmp_path / "other")
    with pytest.raises(UserError, match="another tokenizer: sha256:"):
        tokenize(config(tmp_path, tmp_path / "other"))
    shard = tmp_path / "out" / "00000-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(UserError, match="00000-00000.parquet: not readable; delete it and start again"):
        tokenize(config(tmp_path, tokenizer))


def test_changed_texts_beside_images_are_refused(tmp_path, tokenizer):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "a", "b":
        (folder / f"{name}.png").write_bytes(pictures.encoded(pictures.picture(0, 40, 40), "PNG"))
    (folder / "a.txt").write_text("a cat")
    settings = config(tmp_path, tokenizer)

    def writer():
        return ShardWriter(settings, divide(find_files(settings.input, "**/*"), 10))

    writer().begin()
    assert writer().begun
    (folder / "b.txt").write_text("a dog")
    with pytest.raises(UserError, match="shards of another images in .: 2, with texts and sizes sha256"):
        writer()


def test_a_shard_that_cannot_be_written_is_named(tmp_path, tokenizer):
    filled(tmp_path, tokenizer)
    shard = tmp_path / "out" / "00000-00000.parquet"
    shard.unlink()
    (tmp_path / "out" / "00000-00000.partial").mkdir()
    with pytest.raises(UserError, match="00000-00000.partial: cannot be written: "):
        refill(tmp_path, tokenizer)


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path, tokenizer):
    pictures.write("jsonl", tmp_path / "in", 20, bad_every=4)
    settings = config(tmp_path, tokenizer)
    parts = divide(find_files(settings.input, "**/*"), 10)
    shards = ShardWriter(settings, parts)
    lines = parts[0].path.read_text().splitlines(keepends=True)
    parts[0].path.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="part-0.jsonl: has changed: 9 samples, there were 10"):
        for row in read_batches(parts[0], 32, 4):
            shards.add(row | {"codes": np.zeros((len(row["images"]), 16), np.uint16)})
    assert len(shards.missing()) == 2


def test_what_cannot_work_is_refused_before_anything_starts(tmp_path, tokenizer):
    pictures.write("jsonl", tmp_path / "in", 2, bad_every=10)

    def refused(message, *changes):
        with pytest.raises(UserError, match=message):
            tokenize(config(tmp_path, tokenizer, *changes))
        assert not (tmp_path / "out").exists()

    refused("size=36: must be a multiple of the tokenizer's patch, 8", "size=36")
    refused("part-0.jsonl and 1 more: 1 like: no text .caption_column.", "caption_column=text")
    refused("none of the first samples is good:", "min_size=1000")
    refused("nowhere: not found", "input=${root}/nowhere")
    refused("must not be inside input", "output=${root}/in/out")
    (tmp_path / "big").mkdir()
    export(FsqTokenizer((8, 8, 8, 8, 8, 8), channels=16), tmp_path / "big")
    refused("make 262144 codes, expected 65536 at most", "tokenizer=${root}/big")
    (tmp_path / "big" / "encoder.jit").write_bytes(b"no archive")
    refused("encoder.jit: not a readable TorchScript file", "tokenizer=${root}/big")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="has Parquet files of another origin"):
        tokenize(config(tmp_path, tokenizer))


def test_too_small_a_cluster_is_refused(ray_cluster, tmp_path, tokenizer):
    pictures.write("jsonl", tmp_path / "in", 2, bad_every=10)
    with pytest.raises(UserError, match="the actors ask for 9 CPUs"):
        tokenize(config(tmp_path, tokenizer, "actors.count=9"))
    with pytest.raises(UserError, match=r"\(8 x 1\) leave no CPU for reading: the cluster has 8"):
        tokenize(config(tmp_path, tokenizer, "actors.count=8"))


def test_what_the_actors_refuse_is_a_user_error(ray_cluster, tmp_path, tokenizer):
    pictures.write("jsonl", tmp_path / "in", 2, bad_every=10)
    (tmp_path / "other").mkdir()
    for name in "encoder.jit", "decoder.jit":
        (tmp_path / "other" / name).write_bytes((tokenizer / name).read_bytes())
    (tmp_path / "other" / "config.json").write_text('{"levels": [5, 5, 4], "patch": 4}')
    with pytest.raises(UserError, match=r"encoder.jit gives \[1, 1, 4, 4\], expected \[1, 1, 8, 8\]"):
        tokenize(config(tmp_path, tmp_path / "other"))


def test_help_has_examples_and_keys():
    shown = subprocess.run(
        [sys.executable, "-m", "simplear_rl.tokenize", "--help"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert shown.returncode == 0
    assert "python -m simplear_rl.tokenize input=pictures output=tokens" in shown.stdout
    assert "shard_size" in shown.stdout and "actors.gpus" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "tar"])
def test_killed_runs_lose_and_repeat_nothing(kind, tmp_path, tokenizer):
    good, bad = pictures.write(kind, tmp_path / "in", 300, bad_every=10)
    settings = overrides(tmp_path, tokenizer, "shard_size=25")
    out = tmp_path / "out"
    left = kill_when(settings, lambda: (out / "manifest.json").exists())  # while Ray starts
    for shards in (1,) if kind == "tar" else (2, 6):
        left += kill_when(settings, lambda shards=shards: len(list(out.glob("*.parquet"))) >= shards)
    assert not (out / "rejected.jsonl").exists()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    subprocess.run(command(settings), env=environment(), cwd=REPOSITORY, check=True, timeout=300)
    assert written(out) == (good, bad)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not list(out.glob("*.partial"))
    assert not psutil.wait_procs(left, timeout=90)[1]


def command(settings):
    return [sys.executable, "-m", "simplear_rl.tokenize", *settings]


def environment():
    return os.environ | {"RAY_ADDRESS": "local"}


def kill_when(settings, reached):
    """Start the command, kill it as soon as `reached()`, and see that its Ray session ends with it.

    Returns the two agents of Ray that do nothing more but try for a minute to report the end of their node.
    """
    driver = subprocess.Popen(command(settings), env=environment(), cwd=REPOSITORY)
    try:
        while not reached():
            assert driver.poll() is None, "the command ended before it was killed"
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    left = psutil.wait_procs(children, timeout=15)[1]
    assert {process.name() for process in left} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    return left
