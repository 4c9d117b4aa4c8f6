"""DPG-Bench's folder of grids, and its rows on a scripted judge."""

import numpy as np
import pytest
from PIL import Image

from simplear_rl.benchmarks.benchmark import inspect
from simplear_rl.benchmarks.dpg_files import DpgBench
from simplear_rl.benchmarks.dpg_questions import COLUMNS, Question
from simplear_rl.benchmarks.scorer import BENCHMARKS
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError

QUESTIONS = [
    Question(1, "Is there a cat?", (), "entity", "entity - whole"),
    Question(2, "Is the cat black?", (1,), "attribute", "attribute - color"),
]
PROMPTS = {"a1": "a black cat", "b2": "another black cat"}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)


def bench(size=16, prompts=PROMPTS):
    return DpgBench(prompts, dict.fromkeys(prompts, QUESTIONS), "corrected", "a judge", size)


@pytest.fixture
def folder(tmp_path):
    for i, images in enumerate(IMAGES):
        bench().write(tmp_path, i, images)
    return tmp_path


@pytest.mark.parametrize("size", [16, None])
def test_grids_are_written_and_read_without_padding(folder, size):
    assert sorted(file.name for file in folder.iterdir()) == ["a1.png", "b2.png"]
    assert Image.open(folder / "a1.png").size == (32, 32)
    samples, problems = bench(size).load(folder, 1, 4)
    assert not problems and [sample.name for sample in samples] == ["b2.png#1", "b2.png#2", "b2.png#3", "b2.png#4"]
    assert np.array_equal([sample.pixels for sample in samples], IMAGES[1])


def test_damage_is_listed(folder):
    (folder / "a1.png").write_text("x")
    Image.new("RGB", (38, 38)).save(folder / "b2.png")
    (folder / "c3.png").touch()
    checksums, problems = inspect(bench(), folder, 4)
    assert checksums == {0: [], 1: []}
    for line, part in zip(problems, ("a1.png: not a readable", "padded by 2 pixels", "c3.png: belongs"), strict=True):
        assert part in line
    (folder / "a1.png").unlink()
    assert "a1.png: missing" in bench().load(folder, 0, 4)[1][0]


def test_grids_of_others_may_be_jpegs(folder):
    """As SimpleAR's are; two of one prompt are one too many."""
    Image.open(folder / "a1.png").save(folder / "a1.jpg")
    assert bench().load(folder, 0, 4)[1] == [f"{folder}/a1.png: found a1.jpg and a1.png (prompt 'a black cat')"]
    (folder / "a1.png").unlink()
    samples, problems = bench().load(folder, 0, 4)
    assert [sample.name for sample in samples] == [f"a1.jpg#{k}" for k in (1, 2, 3, 4)]
    assert problems == inspect(bench(), folder, 4)[1] == []


class Judge:
    name = "a judge"

    def answer(self, images, questions):
        """No cat in the second image, which is black all the same."""
        return ["no" if i == 2 else "yes" for i in range(len(questions))]


def test_rows_scores_and_what_the_page_says(folder):
    rows = [row for i in range(2) for row in bench().judge(i, bench().load(folder, i, 4)[0], Judge())]
    assert [row["score"] for row in rows] == [1, 0, 1, 1] * 2
    assert bench().outcome(rows[0]) == (True, "100 of 100", [], [])
    reasons = ["Is there a cat? no", "Is the cat black? yes, but not what it depends on"]
    assert bench().outcome(rows[1]) == (False, "0 of 100", reasons, [])
    assert bench().summary(rows)["scores"]["total"] == 75
    assert bench().score_names() == list(bench().summary(rows)["scores"])
    assert bench().requirements(0) == ["Is there a cat?", "Is the cat black?"]


def test_a_part_of_the_prompts_is_evenly_spaced_and_keeps_its_questions(tmp_path):
    prompts = "".join(f'{{"item_id": "{item}", "text": "a cat"}}\n' for item in "abcdef")
    (tmp_path / "prompts.jsonl").write_text(prompts)
    rows = [f"{item},a cat,,1,0,entity,whole,entity - whole (cat),Is there a cat in {item}?\n" for item in "abcdef"]
    (tmp_path / "questions.csv").write_text(",".join(COLUMNS) + "\n" + "".join(rows))
    files = [f"prompts={tmp_path}/prompts.jsonl", f"questions={tmp_path}/questions.csv", "prompt_count=4"]
    part = BENCHMARKS["dpg"](load_config(EvaluateConfig, CONFIGS / "dpg" / "evaluate.yaml", files))
    assert part.items == ["a", "b", "d", "e"]
    assert [part.requirements(i) for i in range(4)] == [[f"Is there a cat in {item}?"] for item in "abde"]


def test_an_item_that_cannot_name_a_file_is_refused():
    with pytest.raises(UserError, match="item_id '../a': cannot be the name of a file"):
        bench(prompts={"../a": "a cat"})


def test_a_copy_of_the_published_folder_is_enough(tmp_path):
    """Prompts from its table, where none are given, or from its folder of texts: the same benchmark."""
    (tmp_path / "prompts").mkdir()
    lines = [",".join(COLUMNS)]
    for item, text in PROMPTS.items():
        (tmp_path / "prompts" / f"{item}.txt").write_text(f"{text}\n", encoding="utf-8")
        lines.append(f"{item},{text},,1,0,entity,whole,,Is there a cat?")
    (tmp_path / "dpg_bench.csv").write_text("\n".join(lines), encoding="utf-8")
    found = []
    for more in [], [f"prompts={tmp_path}/prompts"]:
        values = [f"root={tmp_path}", "policy=/policy", *more]
        found.append(BENCHMARKS["dpg"](load_config(EvaluateConfig, CONFIGS / "dpg" / "evaluate.yaml", values)))
    for benchmark in found:
        assert dict(zip(benchmark.items, benchmark.texts, strict=True)) == PROMPTS
        assert benchmark.requirements(1) == ["Is there a cat?"]
