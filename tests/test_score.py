"""Scores of images from a folder, a table and token shards."""

import csv
import html
import json
import re

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.score import ScoreConfig
from simplear_rl.errors import UserError
from simplear_rl.score import score
from tests.pictures import encoded, picture

CODE = """\
def red(images, prompts, factor=1):
    if "Ctrl-C" in prompts and images.any():  # not those of the trial
        raise KeyboardInterrupt
    if "nothing" in prompts:
        raise ValueError("no such thing")
    reds = images[..., 0].mean((1, 2)) * factor
    return [None if prompt == "none" else red for red, prompt in zip(reds, prompts)]

def answered(images, answer):
    return {"a": [float(a) for a in answer], "b": [1.0] * len(answer)}
"""


@pytest.fixture
def run(tmp_path):
    """Scores with a reward of the user's; returns the rows of the table and the page."""
    (tmp_path / "my_reward.py").write_text(CODE)

    def run(*overrides, function="red", more=""):
        model = f"{{type: python, function: {tmp_path}/my_reward.py:{function}{more}}}"
        values = [f"root={tmp_path}", f"reward.models=[{model}]", f"output={tmp_path / 'out'}", *overrides]
        score(load_config(ScoreConfig, CONFIGS / "shapes" / "score.yaml", values))
        with open(tmp_path / "out" / "scores.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return rows, (tmp_path / "out" / "index.html").read_text(encoding="utf-8")

    return run


def make_images(folder, reds, prompts):
    folder.mkdir()
    for i, (red, prompt) in enumerate(zip(reds, prompts, strict=True)):
        entries = PngInfo()
        entries.add_text("prompt", prompt)
        image = Image.fromarray(np.full((8, 8 + i % 2, 3), red, np.uint8))
        image.save(folder / f"{i:02d}.png", pnginfo=entries if i else None)
    (folder / "00.txt").write_text(prompts[0] + "\n", encoding="utf-8")


def test_images_of_a_folder_stand_in_a_table_and_on_a_page_with_the_best_first(run, tmp_path, capsys):
    make_images(tmp_path / "images", [10, 30, 20, 40], ["a <b>", "b", "c", "d"])
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "contact_sheet.png")  # as `generate` leaves it
    rows, page = run(f"images={tmp_path / 'images'}", "batch_size=2", more=", arguments: {factor: 0.5}, weight: 2")
    assert [row["prompt"] for row in rows] == ["a <b>", "b", "c", "d"]
    assert [(float(row["total"]), float(row["red"])) for row in rows] == [(10, 5), (30, 15), (20, 10), (40, 20)]
    assert re.findall(r'src="(.*?)"', page) == [f"../images/{i:02d}.png" for i in (3, 1, 2, 0)]
    assert "a &lt;b&gt;" in page
    assert "total                            25 +- 11.18, from 10 to 40" in capsys.readouterr().out


def test_images_that_cannot_be_scored_come_last_and_say_why(run, tmp_path):
    make_images(tmp_path / "images", [10, 20, 30, 40, 50], ["nothing", "b", "none", "c", "d"])
    rows, page = run(f"images={tmp_path / 'images'}", more=", on_error: skip_group")
    assert [row["total"] for row in rows] == ["", "20", "", "40", "50"]
    assert "ValueError: no such thing (my_reward.py, line 5)" in rows[0]["error"]
    assert rows[2]["error"] == "reward red: the score 'red' of image 0 is nan, expected a number"
    assert [int(i) for i in re.findall(r"images/(\d\d).png", page)] == [4, 3, 1, 0, 2]
    assert "ValueError: no such thing" in html.unescape(page)


def test_what_was_scored_before_ctrl_c_stays(run, tmp_path, capsys):
    make_images(tmp_path / "images", [10, 30, 20, 40], ["a", "b", "Ctrl-C", "d"])
    with pytest.raises(KeyboardInterrupt):
        run(f"images={tmp_path / 'images'}", "batch_size=1")
    assert "\n2 of 4 images, 0 not scored: " in capsys.readouterr().out
    with open(tmp_path / "out" / "scores.csv", encoding="utf-8", newline="") as file:
        assert [row["red"] for row in csv.DictReader(file)] == ["10", "30"]
    assert "images/01.png" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_a_table_names_images_prompts_and_columns(run, tmp_path):
    make_images(tmp_path / "images", [1, 2], ["x", "y"])
    lines = [{"file": "01.png", "prompt": "b", "answer": 7}, {"file": "00.png", "prompt": "a", "answer": 8}]
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(json.dumps(line) for line in lines))
    rows, _ = run(f"images={tmp_path / 'images'}", f"prompts={table}", function="answered")
    assert [(row["prompt"], row["answered_a"], row["answered_b"], row["total"]) for row in rows] == [
        ("b", "7", "1", "8"),
        ("a", "8", "1", "9"),
    ]
    table.write_text('{"file": "01.png", "prompt": "b"}\n{"file": "none.png", "prompt": "b"}')
    with pytest.raises(UserError, match="none.png: not there, though .*table.jsonl names it"):
        run(f"images={tmp_path / 'images'}", f"prompts={table}")
    table.write_text('{"prompt": "b"}')
    with pytest.raises(UserError, match="expected a column `file`"):
        run(f"images={tmp_path / 'images'}", f"prompts={table}")
    (tmp_path / "table.csv").write_text(f"file,prompt\n{'x' * 400},a\n")
    with pytest.raises(UserError, match="xxx: not there, though .*table.csv names it"):
        run(f"images={tmp_path / 'images'}", f"prompts={tmp_path / 'table.csv'}")


def test_images_without_prompts_and_files_that_are_none_are_all_named(run, tmp_path):
    make_images(tmp_path / "images", [1, 2], ["x", "y"])
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "10.jpg")
    (tmp_path / "images" / "11.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        run(f"images={tmp_path / 'images'}")
    first, second = str(error.value).split("\n")
    assert first.endswith("10.jpg: no prompt: neither 10.txt nor an entry `prompt`; or name a table, `prompts`")
    assert second.endswith("11.png: not a readable image: not a JPEG, PNG or WebP image")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no image files there"):
        run(f"images={tmp_path / 'none'}")
    with pytest.raises(UserError, match="images2: not found"):
        run(f"images={tmp_path / 'images2'}")
    with pytest.raises(UserError, match="expected either `images` or `codes`"):
        run()


def test_images_are_read_as_those_that_are_tokenized(run, tmp_path):
    make_images(tmp_path / "images", [10], ["a"])
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "images" / "00.png")
    turned, exif = Image.new("RGB", (4, 8)), Image.Exif()
    exif[0x0112] = 6
    turned.paste((200, 0, 0), (0, 0, 4, 4))
    turned.save(tmp_path / "images" / "01.png", exif=exif)
    Image.fromarray(np.full((8, 8), 40 << 8, np.uint16)).save(tmp_path / "images" / "02.png")
    for name in "01.txt", "02.txt":
        (tmp_path / "images" / name).write_text("a")
    (tmp_path / "my_reward.py").write_text(CODE + "def right(images):\n    return images[:, 0, -1, 0] * 1.0\n")
    rows, _ = run(f"images={tmp_path / 'images'}", function="right")
    assert [float(row["total"]) for row in rows] == [255, 200, 40]


@pytest.mark.parametrize("named", [False, True])
def test_all_damaged_images_are_named_before_anything_is_loaded(run, tmp_path, monkeypatch, named):
    make_images(tmp_path / "images", [1, 2], ["x", "y"])
    for name in "10", "11", "12":
        (tmp_path / "images" / f"{name}.png").write_bytes(encoded(picture(1, 64, 64), "PNG")[:-2000])
        (tmp_path / "images" / f"{name}.txt").write_text("a")
    table = tmp_path / "table.csv"
    table.write_text("file,prompt\n" + "".join(f"{name}.png,a\n" for name in ("00", "01", "10", "11", "12", "none")))
    monkeypatch.setattr("simplear_rl.score.RewardModels", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError) as error:
        run(f"images={tmp_path / 'images'}", *([f"prompts={table}"] if named else []))
    *absent, first, second, third = str(error.value).split("\n")
    assert len(absent) == named
    for line, name in zip((first, second, third), ("10", "11", "12"), strict=True):
        assert f"{name}.png: not a readable image: " in line
    with pytest.raises(UserError, match=r"10.png: not a readable image: [^\n]*$"):
        run(f"images={tmp_path / 'images'}", "limit=3", *([f"prompts={table}"] if named else []))


def test_mistakes_of_a_reward_are_said_before_anything_is_scored(run, tmp_path):
    make_images(tmp_path / "images", [1], ["x"])
    with pytest.raises(UserError, match="asks for answer"):
        run(f"images={tmp_path / 'images'}", function="answered")
    assert not (tmp_path / "out").exists()


def test_images_of_token_shards(run, world, tmp_path):
    rows, page = run(
        f"codes={world / 'data' / 'pretrain'}",
        f"policy={world / 'policy'}",
        f"tokenizer={world / 'tokenizer'}",
        "limit=5",
    )
    assert len(rows) == 5
    assert all(row["prompt"] and float(row["red"]) > 0 for row in rows)
    assert sorted(re.findall(r'src="(.*?)"', page)) == [f"images/{i:06d}.png" for i in range(5)]
