"""The folder of an evaluation: what may change when it goes on, and what may not."""

import json
import shutil
import zlib
from dataclasses import replace

import numpy as np
import pytest
import yaml

from simplear_rl.benchmarks.dpg_files import DpgBench
from simplear_rl.benchmarks.dpg_questions import Question
from simplear_rl.benchmarks.geneval_files import GenEval
from simplear_rl.benchmarks.output import open_folder, unfinished, write_results, write_verdict
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.demo import is_evaluated
from simplear_rl.errors import UserError
from simplear_rl.run.checkpoints import begin_checkpoint, weights_sha256

COW = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}
BENCHMARK = GenEval([COW, COW])


def settings(folder, *overrides):
    values = [f"root={folder}", f"output={folder / 'out'}", f"policy={folder / 'final'}", *overrides]
    return load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", values)


def judge(config, index):
    """Write the image of a prompt and the verdict on it."""
    pixels = np.full((1, 16, 16, 3), index, np.uint8)
    BENCHMARK.write(config.images, index, pixels)
    write_verdict(config.output, index, [{"checksum": zlib.crc32(pixels.tobytes())}])


def begin(config):
    """Open the folder and judge a prompt in it."""
    open_folder(config, BENCHMARK)
    judge(config, 0)


def test_where_and_how_fast_it_runs_may_change(tmp_path):
    begin(settings(tmp_path))
    others = "scorer.count=3", "engine.actors.gpus=1", "engine.kv_cache_gib=2", "faults.heartbeat_seconds=600"
    open_folder(settings(tmp_path, *others), BENCHMARK)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("guidance_scale=3", "guidance_scale: 1.0 -> 3.0"),
        ("seed=1", "seed: 0 -> 1"),
        ("images_per_prompt=3", "images_per_prompt: 1 -> 3"),
        ("engine.dtype=bfloat16", "engine.dtype: float32 -> bfloat16"),
        ("detector.dtype=bfloat16", "detector.dtype: float32 -> bfloat16"),
        ("score_only=/images", "score_only: None -> /images"),
    ],
)
def test_what_changes_images_or_verdicts_may_not(tmp_path, override, message):
    begin(settings(tmp_path))
    with pytest.raises(UserError, match=f"out: was begun with other settings(.|\n)*{message}"):
        open_folder(settings(tmp_path, override), BENCHMARK)


@pytest.mark.parametrize("there", ["verdicts/00000.json", "images/00000/samples/00000.png"])
def test_anything_may_change_before_the_first_image(tmp_path, there):
    """A first start ends, for example, at a judge that cannot be fetched."""
    open_folder(settings(tmp_path), BENCHMARK)
    other = settings(tmp_path, "seed=1", "guidance_scale=3")
    open_folder(other, GenEval([COW]))
    open_folder(other, BENCHMARK)
    file = tmp_path / "out" / there
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(UserError, match="seed: 1 -> 0"):
        open_folder(settings(tmp_path), BENCHMARK)


def test_other_requirements_are_other_prompts(tmp_path):
    begin(settings(tmp_path))
    with pytest.raises(UserError, match="prompts_sha256: "):
        open_folder(settings(tmp_path), GenEval([COW, COW | {"include": [{"class": "cow", "count": 2}]}]))


def test_other_rules_are_other_prompts(tmp_path):
    """A tag decides the threshold, a dependency which answers count."""
    begin(settings(tmp_path))
    with pytest.raises(UserError, match="prompts_sha256: "):
        open_folder(settings(tmp_path), GenEval([COW, COW | {"tag": "counting"}]))
    questions = {"a": [Question(1, "?", (), "entity", "whole"), Question(2, "?", (1,), "entity", "whole")]}
    asked = [DpgBench({"a": "a cow"}, questions, "corrected", "", None).rules_of(0)]
    for change in {"parents": ()}, {"broad": "attribute"}:
        other = {"a": [questions["a"][0], replace(questions["a"][1], **change)]}
        asked.append(DpgBench({"a": "a cow"}, other, "corrected", "", None).rules_of(0))
    assert len({json.dumps(rules) for rules in asked}) == 3


def test_a_link_to_another_checkpoint_is_another_policy(tmp_path):
    for step in "step-1", "step-2":
        (tmp_path / step).mkdir()
    (tmp_path / "final").symlink_to("step-1")
    begin(settings(tmp_path))
    (tmp_path / "final").unlink()
    (tmp_path / "final").symlink_to("step-2")
    with pytest.raises(UserError, match=r"policy: .*step-1 -> .*step-2"):
        open_folder(settings(tmp_path), BENCHMARK)


def train(folder, content):
    """Weights at a path where others may have been."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)


def test_other_weights_at_the_same_path_are_another_policy(tmp_path):
    config = settings(tmp_path)
    train(config.policy, b"first")
    begin(config)
    train(config.policy, b"first")
    open_folder(config, BENCHMARK)
    train(config.policy, b"again")
    with pytest.raises(UserError, match=r"weights_sha256: \w{64} -> \w{64}"):
        open_folder(config, BENCHMARK)


def test_the_demo_keeps_no_scores_of_other_weights(tmp_path):
    config = settings(tmp_path)
    train(config.policy, b"first")
    assert not is_evaluated(config)
    open_folder(config, BENCHMARKS["shapes"](config))
    judge(config, 0)
    (config.output / "scores.json").touch()
    assert is_evaluated(config)
    train(config.policy, b"again")
    with pytest.raises(UserError, match="weights_sha256: "):
        is_evaluated(config)


@pytest.mark.parametrize("before", ["absent", "unknown"])
def test_an_evaluation_that_does_not_know_its_weights_goes_on_and_then_does(tmp_path, before):
    """As of an older version, or of a training, which writes the step after it."""
    config = settings(tmp_path)
    begin(config)
    file = config.output / "config.yaml"
    values = yaml.safe_load(file.read_text())
    assert values.pop("weights_sha256") is None
    if before == "absent":
        file.write_text(yaml.safe_dump(values))
    train(config.policy, b"first")
    open_folder(config, BENCHMARK)
    assert yaml.safe_load(file.read_text())["weights_sha256"] == weights_sha256(config.policy)


@pytest.mark.parametrize("damaged", [None, "", "[1]"])
def test_weights_of_a_checkpoint_are_told_without_reading_them(tmp_path, damaged):
    checkpoint = tmp_path / "step-000001"
    begin_checkpoint(checkpoint, lambda partial: lambda: train(partial / "model", b"first"))()
    train(tmp_path / "copy", b"first")
    (tmp_path / "final").symlink_to("step-000001/model")
    if damaged is None:
        (checkpoint / "model" / "model.safetensors").write_bytes(b"not read")
    else:
        (checkpoint / "checksums.json").write_text(damaged)
    assert weights_sha256(tmp_path / "final") == weights_sha256(tmp_path / "copy")


def test_the_policy_does_not_matter_where_nothing_is_drawn(tmp_path):
    open_folder(settings(tmp_path, "score_only=/images"), BENCHMARK)
    write_verdict(tmp_path / "out", 0, [{"checksum": 7}])
    open_folder(settings(tmp_path, "score_only=/images", "policy=null", "guidance_scale=2", "tokenizer=a/b"), BENCHMARK)


@pytest.mark.parametrize("damaged", ["verdicts/00001.json", "images/00001/samples/00000.png"])
@pytest.mark.parametrize("content", [b"", bytes(20), b"a quarter", None])
def test_what_a_crash_has_damaged_is_judged_again(tmp_path, damaged, content):
    config = settings(tmp_path)
    open_folder(config, BENCHMARK)
    for index in 0, 1:
        judge(config, index)
    assert unfinished(config, BENCHMARK) == []
    file = config.output / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 4] if content == b"a quarter" else content or b"")
    if content is None:
        file.unlink()
    assert unfinished(config, BENCHMARK) == [1]


@pytest.mark.parametrize("content", ["", "a: [1,", "- 1"])
def test_settings_that_a_crash_has_damaged_are_written_again_before_a_verdict_and_named_after(tmp_path, content):
    config = settings(tmp_path)
    open_folder(config, BENCHMARK)
    file = config.output / "config.yaml"
    whole = file.read_text()
    file.write_text(content)
    open_folder(config, BENCHMARK)
    assert file.read_text() == whole
    judge(config, 1)
    file.write_text(content)
    with pytest.raises(UserError, match=f"{file}: damaged, .*delete the file if the settings are the same"):
        open_folder(config, BENCHMARK)


def test_prompts_without_a_verdict_on_these_images_are_to_do(tmp_path):
    config = settings(tmp_path)
    judge(config, 1)
    assert unfinished(config, BENCHMARK) == [0]
    write_verdict(config.output, 1, [{"checksum": 7}])
    assert unfinished(config, BENCHMARK, {0: [], 1: [7]}) == [0]
    assert unfinished(config, BENCHMARK, {0: [], 1: [8]}) == [0, 1]


def test_a_verdict_that_is_not_there_is_waited_for_and_then_an_error(tmp_path, monkeypatch):
    """Left out, its images would change the score without a word."""
    config = settings(tmp_path)
    begin(config)
    monkeypatch.setattr("simplear_rl.benchmarks.output.SEEN_WITHIN", 0.1)
    with pytest.raises(UserError, match=r"1 of 2 verdicts are missing or damaged, the first is .*verdicts/00001.json"):
        write_results(config, BENCHMARK)
    monkeypatch.setattr("simplear_rl.benchmarks.output.SEEN_WITHIN", 60)
    monkeypatch.setattr("simplear_rl.benchmarks.output.sleep", lambda _: judge(config, 1))
    with pytest.raises(KeyError):  # the verdicts of this test hold checksums alone; all of them were read
        write_results(config, BENCHMARK)
    assert unfinished(config, BENCHMARK) == []
