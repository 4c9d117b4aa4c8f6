"""Evaluation from end to end: real engines, real detectors, the page; interrupted, continued, on damaged folders."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from simplear_rl.benchmarks import scorer
from simplear_rl.benchmarks.dpg import grid
from simplear_rl.benchmarks.dpg_questions import COLUMNS
from simplear_rl.benchmarks.geneval import TAGS
from simplear_rl.benchmarks.geneval_files import GenEval
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError
from simplear_rl.evaluate import evaluate, report
from simplear_rl.policy.rollouts import Prompt, Rollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.shapes.world import crowded_images, evaluation_prompts, render, sample_scene
from simplear_rl.vision.vqa import TransformersJudge
from tests.visual_judge import make_model

ENTRIES = evaluation_prompts()[::50]  # one of each tag
COW = {"class": "cow", "count": 1}


@pytest.fixture
def settings(world, tmp_path, ray_cluster, monkeypatch):
    """An evaluation of the untrained policy on six prompts, two images each; returns a function of more overrides."""
    monkeypatch.setitem(scorer.BENCHMARKS, "shapes", lambda config: GenEval(ENTRIES))
    values = [f"root={world}", f"policy={world / 'policy'}", f"output={tmp_path / 'out'}", "images_per_prompt=2"]

    def load(*overrides):
        return load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", [*values, *overrides])

    return load


@pytest.fixture
def scenes(tmp_path):
    """Images that meet the six prompts, in GenEval's layout."""
    random = np.random.default_rng(0)
    for i, entry in enumerate(ENTRIES):
        GenEval(ENTRIES).write(
            tmp_path / "scenes", i, np.stack([render(sample_scene(entry, random)) for _ in range(2)])
        )
    return tmp_path / "scenes"


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


@pytest.mark.slow
def test_an_evaluation_continues_to_the_same_end_and_refuses_other_settings(settings, tmp_path):
    output = tmp_path / "out"
    summary = evaluate(settings())
    assert summary["images"] == 12 and summary["left_out"] == 0
    assert list(summary["scores"]) == [*TAGS, "overall"]
    results, images = (output / "results.jsonl").read_text(), contents(output)
    rows = [json.loads(line) for line in results.splitlines()]
    assert [row["index"] for row in rows] == [i for i in range(6) for _ in range(2)]
    assert {output / row["filename"] for row in rows} == {output / file for file in images}

    kept = (output / "verdicts" / "00000.json").stat().st_mtime_ns
    for i in 2, 5:
        (output / "verdicts" / f"{i:05d}.json").unlink()
    shutil.rmtree(output / "images" / "00005")
    (output / "verdicts" / "00003.json.partial").write_text("[{")  # as a kill leaves it
    assert evaluate(settings("engine.max_concurrent=4", "scorer.count=2")) == summary
    assert (output / "results.jsonl").read_text() == results and contents(output) == images
    assert (output / "verdicts" / "00000.json").stat().st_mtime_ns == kept

    with pytest.raises(UserError, match="out: was begun with other settings(.|\n)*guidance_scale: 1.0 -> 3.0"):
        evaluate(settings("guidance_scale=3"))


@pytest.mark.slow
def test_every_engine_draws_the_same_pictures_for_a_greedy_policy(settings, tmp_path):
    folders = {engine: tmp_path / engine for engine in ("vllm", "transformers", "sjd")}
    for engine, output in folders.items():
        more = ("temperature=0", "images_per_prompt=1", "guidance_scale=2", f"output={output}", f"engine.type={engine}")
        assert evaluate(settings(*more))["images"] == 6
        assert (output / "index.html").read_text().count("<img") == 6
    vllm, transformers, sjd = map(contents, folders.values())
    assert len(vllm) == 6 and vllm == transformers == sjd
    evaluate(settings(*more, "negative_prompt=a red circle", f"output={tmp_path / 'negative'}"))
    assert contents(tmp_path / "negative") != sjd


def test_images_of_others_are_scored_and_damage_is_refused_or_counted(settings, scenes, tmp_path, capsys):
    score = settings(f"score_only={scenes}", "policy=null", "tokenizer=nowhere")
    summary = evaluate(score)
    assert summary["scores"] == dict.fromkeys([*TAGS, "overall"], 1.0)
    assert not (tmp_path / "out" / "images").exists()

    (scenes / "00001/samples/00001.png").write_bytes(b"no image")
    blank = scenes / "00000/samples/00000.png"
    Image.fromarray(render([])).save(blank)
    shutil.move(scenes / "00003/samples/00000.png", scenes / "00003/samples/notes.png")
    with pytest.raises(UserError, match=r"scenes: 3 problems") as refused:
        evaluate(score)
    for line in (
        "00001.png: not a readable image",
        "00003/samples/00000.png: missing",
        "notes.png: belongs to no prompt",
    ):
        assert line in str(refused.value)

    report(settings(f"score_only={scenes}", "policy=null", "tokenizer=nowhere", "allow_missing=true"))
    shown = capsys.readouterr().out
    assert "notes.png: belongs to no prompt" in shown
    assert re.search(r"single_object +0\.500 ", shown), "the image that was replaced was not judged again"
    assert "10 images, 2 left out" in shown
    assert "2 left out" in (tmp_path / "out" / "index.html").read_text()

    for i in range(2):
        (scenes / f"00004/samples/{i:05d}.png").unlink()
    with pytest.raises(UserError, match="no score: no images of position"):
        evaluate(settings(f"score_only={scenes}", "policy=null", "allow_missing=true"))


def test_the_page_shows_every_prompt_with_what_was_required_and_found(settings, scenes, tmp_path):
    Image.fromarray(render([])).save(scenes / "00002/samples/00001.png")
    evaluate(settings(f"score_only={scenes}"))
    page = (tmp_path / "out" / "index.html").read_text()
    sources = re.findall(r'<img src="([^"]+)"', page)
    assert len(sources) == 12 and all((tmp_path / "out" / source).is_file() for source in sources)
    articles = page.split("<article")[1:]
    assert len(articles) == 6 and ["well" in article[:40] for article in articles] == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    counting = articles[2]
    number = ENTRIES[2]["include"][0]["count"]
    assert counting.count('class="box') == number, "one image has all its shapes, the other none"
    assert f"required: {number} {ENTRIES[2]['include'][0]['class']}; fewer than {number + 1}" in counting
    assert f"expected {ENTRIES[2]['include'][0]['class']}&gt;={number}, found 0" in counting
    assert '<a href="#counting">' in page and 'id="counting"' in page


def test_geneval_with_mask2former_and_clip(detector_config, pictures, tmp_path, ray_cluster):
    """Random weights find nothing, but load, look at batches of two sizes, and fill scores and page."""
    entries = [{"tag": tag, "include": [COW], "prompt": f"a photo of a cow, {tag}"} for tag in TAGS]
    entries[3]["include"] = [COW | {"color": "red"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    for i in range(6):
        GenEval(entries).write(tmp_path / "images", i, np.stack(pictures[:1]))
        Image.fromarray(pictures[3]).save(tmp_path / "images" / f"{i:05d}" / "samples" / "00001.png")
    overrides = [
        f"detector={detector_config.model_dump_json()}",
        f"prompts={tmp_path / 'metadata.jsonl'}",
        f"score_only={tmp_path / 'images'}",
        f"output={tmp_path / 'out'}",
        "images_per_prompt=2",
        "scorer={count: 1}",
    ]
    summary = evaluate(load_config(EvaluateConfig, CONFIGS / "geneval" / "evaluate.yaml", overrides))
    assert summary["images"] == 12 and summary["scores"]["overall"] == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert all(row["reasons"] == ["expected cow>=1, found 0"] for row in rows)
    assert [(row["width"], row["height"]) for row in rows[:2]] == [(48, 48), (64, 48)]


@pytest.mark.slow
def test_dpg_bench_with_a_vision_language_model(tmp_path, ray_cluster):
    """Random weights answer at random, but load, look at every image, and fill scores and page."""
    questions = {1: (0, "is there a red circle"), 2: (1, "is the circle red"), 3: (0, "is there a blue square")}
    items = {"a1": "a red circle", "b2": "a blue square"}
    lines = [json.dumps({"item_id": item, "text": text}) for item, text in items.items()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    table = [",".join(COLUMNS)] + [
        f"{item},{text},,{i},{parent},entity,whole,,{question}"
        for item, text in items.items()
        for i, (parent, question) in questions.items()
    ]
    (tmp_path / "questions.csv").write_text("\n".join(table))
    images = crowded_images(8, seed=0).reshape(2, 4, 64, 64, 3)
    (tmp_path / "images").mkdir()
    for item, four in zip(items, images, strict=True):
        Image.fromarray(grid(four)).save(tmp_path / "images" / f"{item}.png")
    judge = {"model": str(make_model(tmp_path / "judge")), "dtype": "float32", "batch_size": 5}
    overrides = [
        f"judge={json.dumps(judge)}",
        f"prompts={tmp_path / 'prompts.jsonl'}",
        f"questions={tmp_path / 'questions.csv'}",
        f"score_only={tmp_path / 'images'}",
        "image_size=64",
        f"output={tmp_path / 'out'}",
        "scorer={count: 2}",
    ]
    summary = evaluate(load_config(EvaluateConfig, CONFIGS / "dpg" / "evaluate.yaml", overrides))
    assert (summary["images"], summary["left_out"], summary["judge"]) == (8, 0, judge["model"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    alone = TransformersJudge(Path(judge["model"]), dtype="float32")
    for row, image in zip(rows, images.reshape(8, 64, 64, 3), strict=True):
        texts = [question for _, question in questions.values()]
        assert [answer["answer"] for answer in row["answers"]] == alone.answer([image] * 3, texts)
    assert len({row["score"] for row in rows}) > 1, "all the same: the test would not see a mix-up"
    assert summary["scores"]["total"] == pytest.approx(100 * np.mean([row["score"] for row in rows]))
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img") == 2 and all(f"{100 * row['score']:.0f} of 100" in page for row in rows)
    assert page.count("is the circle red yes, but not what it depends on") > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts=null"], "`prompts` is needed: the file of geneval's prompts"),
        (["policy=null"], "either `policy` is needed"),
        (["allow_missing=true"], "`allow_missing` is for `score_only`"),
        (["detector.clip_wieghts=x"], "did you mean detector.clip_weights"),
    ],
)
def test_incomplete_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(EvaluateConfig, CONFIGS / "geneval" / "evaluate.yaml", overrides)


def test_what_is_missing_is_said_before_anything_starts(tmp_path):
    file = CONFIGS / "geneval" / "evaluate.yaml"
    with pytest.raises(UserError, match=r"evaluation_metadata.jsonl: not found; it is published at https://github.com"):
        evaluate(load_config(EvaluateConfig, file, [f"root={tmp_path}"]))


def test_storage_that_refuses_images_is_named(settings, world, tmp_path):
    layout = read_layout(world / "policy")
    judging = scorer.BenchmarkScorer(settings(), GenEval(ENTRIES), layout)
    codes = np.zeros((2, layout.tokens), np.uint16)
    values = {"log_probs": np.zeros(codes.shape, np.float32), "sampling": Sampling(), "weight_version": 0}
    prompt = Prompt(0, ENTRIES[0]["prompt"])
    rollout = Rollout(prompt, [1], None, codes, **values, seed=0, step=0)
    (tmp_path / "images").write_text("a file")
    with pytest.raises(UserError, match="images: cannot be written: Not a directory"):
        judging.judge_rollout(rollout, tmp_path)


FEW_PROMPTS = """
import sys
from simplear_rl import evaluate
from simplear_rl.benchmarks.geneval_files import GenEval
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.shapes.world import evaluation_prompts
BENCHMARKS["shapes"] = lambda config: GenEval(evaluation_prompts()[::5])
evaluate.evaluate(load_config(EvaluateConfig, CONFIGS / "shapes" / "evaluate.yaml", sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_evaluation_continues(world, tmp_path, ray_cluster):
    """SIGKILL in the middle; then the same command does only the rest, and ends as one that ran through."""
    command = [sys.executable, "-c", FEW_PROMPTS, f"root={world}", f"policy={world / 'policy'}"]
    command += ["engine.max_concurrent=2"]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    run = {"cwd": Path(__file__).parents[1], "env": environment}
    subprocess.run([*command, f"output={tmp_path / 'whole'}"], check=True, **run)
    process = subprocess.Popen([*command, f"output={tmp_path / 'killed'}"], **run)
    verdicts = tmp_path / "killed" / "verdicts"
    while len(list(verdicts.glob("*.json"))) < 10:
        time.sleep(0.05)
        assert process.poll() is None, "the evaluation ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # what its actors had begun
    before = {file.name: file.stat().st_mtime_ns for file in verdicts.glob("*.json")}
    assert 10 <= len(before) < 60 and not (tmp_path / "killed" / "scores.json").exists()
    subprocess.run([*command, f"output={tmp_path / 'killed'}"], check=True, **run)
    assert all((verdicts / name).stat().st_mtime_ns == mtime for name, mtime in before.items())
    assert (tmp_path / "killed/results.jsonl").read_text() == (tmp_path / "whole/results.jsonl").read_text()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
