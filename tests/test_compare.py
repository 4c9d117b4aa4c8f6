"""Two sides on the same prompts: pictures in pairs, a paired test, win rates, the largest gain first."""

import csv
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from simplear_rl.algorithms.paired import compare as paired
from simplear_rl.compare import compare
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.compare import CompareConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError

CODE = "def red(images, prompts):\n    return list(images[..., 0].mean((1, 2)))\n"


def run(folder, a, b, *more):
    (folder / "my_reward.py").write_text(CODE)
    values = [f"root={folder}", f"a={a}", f"b={b}", f"output={folder / 'out'}", "batch_size=2"]
    values += [f"reward.models=[{{type: python, function: {folder}/my_reward.py:red}}]", *more]
    compare(load_config(CompareConfig, CONFIGS / "shapes" / "compare.yaml", values))
    with open(folder / "out" / "pairs.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), (folder / "out" / "index.html").read_text(encoding="utf-8")


def images(folder, reds, prompts="abc"):
    folder.mkdir()
    for i, (red, prompt) in enumerate(zip(reds, prompts, strict=True)):
        Image.fromarray(np.full((8, 8, 3), red, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(prompt, encoding="utf-8")
    return folder


def test_images_are_scored_in_pairs_with_the_largest_gain_first(tmp_path, capsys):
    rows, page = run(tmp_path, images(tmp_path / "a", [10, 20, 30]), images(tmp_path / "b", [20, 20, 90]))
    assert [(row["prompt"], row["a_red"], row["b_red"]) for row in rows] == [
        ("a", "10", "20"),
        ("b", "20", "20"),
        ("c", "30", "90"),
    ]
    assert re.findall(r"<strong>(.*?)</strong> (\w)", page) == [("+60.0000", "c"), ("+10.0000", "a"), ("+0.0000", "b")]
    assert re.findall(r'src="(.*?)"', page)[:2] == ["../a/2.png", "../b/2.png"]
    assert re.search(r"total .*A +20 +B +43.33 .*win rate of B 0.833", capsys.readouterr().out)


def test_an_image_without_scores_leaves_the_others_theirs(tmp_path, monkeypatch):
    """Several scores by name; of the first pair one image has none."""
    code = (
        "def red(images, prompts):\n    assert images.max() < 255\n"
        "    return {'red': list(images[..., 0].mean((1, 2))), 'n': [1.0] * len(images)}\n"
    )
    monkeypatch.setattr("tests.test_compare.CODE", code)
    rows, page = run(tmp_path, images(tmp_path / "a", [255, 20, 30]), images(tmp_path / "b", [20, 20, 90]))
    assert [(row["a_red_red"], row["b_red_red"]) for row in rows] == [("", "20"), ("20", "20"), ("30", "90")]
    assert "(1 pairs without)" in page and "nan → " in page


def test_pictures_of_an_earlier_comparison_are_left_out(world, tmp_path):
    policy, drawing = world / "policy", [f"tokenizer={world / 'tokenizer'}", "engine=transformers"]
    for number in 2, 1:
        more = [*drawing, "prompts=a red circle", f"images_per_prompt={number}"]
        rows, page = run(tmp_path, policy, policy, *more)
        assert len(rows) == page.count("<figure>") == number


def test_a_folder_is_compared_with_itself(tmp_path):
    a = images(tmp_path / "a", [10, 20, 30])
    rows, _ = run(tmp_path, a, a)
    assert [row["a_red"] for row in rows] == [row["b_red"] for row in rows] == ["10", "20", "30"]


def test_what_does_not_pair_is_named(tmp_path):
    a, b = images(tmp_path / "a", [1, 2, 3]), images(tmp_path / "b", [1, 2], "ax")
    with pytest.raises(UserError, match=r"(?s)a/2.png: no partner.*b/1.png: drawn for 'x', its partner for 'b'"):
        run(tmp_path, a, b)
    with pytest.raises(UserError, match=r"gone: expected a policy, the folder of an evaluation, or a folder of images"):
        run(tmp_path, a, tmp_path / "gone")


def test_prompts_that_can_be_read_once_are_refused(world, tmp_path):
    for prompts in "-", "/dev/null":
        with pytest.raises(UserError, match=f"prompts: {prompts}: both policies draw them, so they are read twice"):
            run(tmp_path, world / "policy", world / "policy", f"prompts={prompts}", f"tokenizer={world / 'tokenizer'}")


def evaluation(folder, values, key="correct", **settings):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    rows = [{"index": i // 2, "filename": f"{i}.png", "prompt": f"p{i // 2}", key: v} for i, v in enumerate(values)]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_evaluations_are_compared_by_their_verdicts(tmp_path, capsys):
    a, b = evaluation(tmp_path / "a", [False] * 4), evaluation(tmp_path / "b", [True, False, True, True])
    rows, page = run(tmp_path, a, b)
    assert len(rows) == 4 and page.count("<figure>") == 4
    assert re.search(r"score .*A +0 +B +0.75 .*win rate of B 0.875", capsys.readouterr().out)
    with pytest.raises(UserError, match=r"a is an evaluation, .*pictures is images: expected two of a kind"):
        run(tmp_path, a, images(tmp_path / "pictures", [1, 2, 3]))
    evaluation(tmp_path / "odd", [1], key="other")
    with pytest.raises(UserError, match=r"odd/results.jsonl: expected the rows of an evaluation"):
        run(tmp_path, a, tmp_path / "odd")


def test_samples_pair_by_their_numbers(tmp_path):
    """An image that one side lacks does not shift the others."""
    a, b = evaluation(tmp_path / "a", [True] * 4), evaluation(tmp_path / "b", [True] * 4)
    for folder, missing in (a, 0), (b, 1):
        rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row | {"sample": i % 2} for i, row in enumerate(rows) if i != missing]
        (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"(?s)a/1.png: no partner.*b/0.png: no partner"):
        run(tmp_path, a, b)


def test_evaluations_that_were_judged_otherwise_are_not_compared(tmp_path):
    sides = [
        evaluation(tmp_path / name, [1.0] * 4, benchmark="dpg", judge={"type": judge}, prompts_sha256="1")
        for name, judge in (("a", "mplug"), ("b", "transformers"))
    ]
    with pytest.raises(UserError, match=r"other rules, models or questions:\n  judge: \{'type': 'mplug'\}, \{"):
        run(tmp_path, *sides)


def test_how_many_are_judged_at_a_time_is_no_matter(tmp_path):
    sides = [evaluation(tmp_path / str(n), [1.0] * 4, judge={"type": "mplug", "batch_size": n}) for n in (1, 2)]
    assert len(run(tmp_path, *sides)[0]) == 4


def test_few_prompts_show_little():
    one = paired(np.zeros(4), np.array([0.1, 0.2, 0.1, 0.2]), np.zeros(4, int))
    assert one.p_value == 1 and one.interval is None and "of one prompt, no interval, p 1.0000" in str(one)
    for number in 2, 5, 10:
        found = paired(np.zeros(number), np.ones(number), np.arange(number))
        assert found.p_value == 2 ** (1 - number)
    # Where there is no difference, at most one p-value in twenty is below 0.05, however few the prompts.
    random = np.random.default_rng(0)
    below = [paired(np.zeros(6), random.normal(size=6), np.arange(6), 100).p_value < 0.05 for _ in range(400)]
    assert np.mean(below) < 0.05


def test_the_test_is_paired_and_over_prompts():
    random = np.random.default_rng(0)
    base = random.normal(size=200) * 10
    prompts = np.arange(200)
    found = paired(base, base + 0.2 + random.normal(size=200) * 0.5, prompts)
    assert found.p_value < 0.001 and 0 < found.interval[0] < 0.2 < found.interval[1]  # the spread of A is no matter
    assert paired(base, base + random.normal(size=200) * 0.5, prompts).p_value > 0.05
    # The same four prompts fifty times are no more evidence than four prompts.
    few = np.repeat(np.array([1.0, 1, 1, -1]), 50)
    assert (
        paired(np.zeros(200), few, prompts).p_value < 0.001 < 0.05 < paired(np.zeros(200), few, prompts // 50).p_value
    )
    same = paired(base, base, prompts)
    assert (same.p_value, same.win_rate, same.ties) == (1, 0.5, 200)
