"""GenEval's folder of images: what is written is read back, and everything amiss is said."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from simplear_rl.benchmarks.benchmark import inspect
from simplear_rl.benchmarks.geneval_files import GenEval
from simplear_rl.vision.detection import Detection

ENTRIES = [
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a dog left of a cat",
    },
    {
        "tag": "counting",
        "include": [{"class": "cup", "count": 2}],
        "exclude": [{"class": "cup", "count": 3}],
        "prompt": "a photo of two cups",
    },
    {"tag": "colors", "include": [{"class": "bus", "count": 1, "color": "red"}], "prompt": "a photo of a red bus"},
]
BENCHMARK = GenEval(ENTRIES)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 24, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for i, images in enumerate(IMAGES):
        BENCHMARK.write(tmp_path, i, images)
    return tmp_path


def test_images_and_metadata_stand_where_geneval_looks_for_them(folder):
    assert json.loads((folder / "00002" / "metadata.jsonl").read_text()) == ENTRIES[2]
    assert np.array_equal(np.asarray(Image.open(folder / "00002/samples/00001.png")), IMAGES[2, 1])
    samples, problems = BENCHMARK.load(folder, 2, 2)
    assert not problems
    assert [sample.name for sample in samples] == ["00002/samples/00000.png", "00002/samples/00001.png"]
    assert np.array_equal([sample.pixels for sample in samples], IMAGES[2])


def test_files_of_geneval_s_own_script_are_taken_as_they_are(folder):
    (folder / "00000" / "grid.png").touch()
    (folder / "00000" / "metadata.jsonl").write_text(json.dumps(ENTRIES[0] | {"prompt": "a photo of a\u00a0cow "}))
    (folder / "00000/samples/00001.png").rename(folder / "00000/samples/0001.png")
    checksums, problems = inspect(BENCHMARK, folder, 2)
    assert not problems
    assert [len(images) for images in checksums.values()] == [2, 2, 2, 2]


def truncated(file):
    file.write_bytes(file.read_bytes()[:-60])


DAMAGES = [
    (lambda f: shutil.rmtree(f / "00001"), "00001: missing", [2, 0, 2, 2]),
    (lambda f: (f / "00000/samples/00001.png").unlink(), "00001.png: missing", [1, 2, 2, 2]),
    (lambda f: truncated(f / "00000/samples/00001.png"), "00001.png: not a readable", [1, 2, 2, 2]),
    (lambda f: (f / "00000/samples/00001.png").write_text("x"), "00001.png: not a readable", [1, 2, 2, 2]),
    (lambda f: Image.new("RGBA", (9, 9)).save(f / "00000/samples/00000.png"), "found mode RGBA", [1, 2, 2, 2]),
    (lambda f: Image.new("RGB", (9, 9)).save(f / "00003/samples/00002.png"), "00002.png: one too many", [2, 2, 2, 2]),
    (lambda f: Image.new("RGB", (9, 9)).save(f / "00003/samples/1.png"), "1.png: one too many", [2, 2, 2, 2]),
    (lambda f: (f / "00002/metadata.jsonl").write_text("{}"), "metadata.jsonl: expected {'tag': 'c", [2, 2, 0, 2]),
    (lambda f: (f / "00002/metadata.jsonl").write_text("x"), "metadata.jsonl: cannot be read", [2, 2, 0, 2]),
    (lambda f: (f / "00002/metadata.jsonl").unlink(), "metadata.jsonl: cannot be read", [2, 2, 0, 2]),
    (lambda f: (f / "00004").mkdir(), "00004: belongs to no prompt", [2, 2, 2, 2]),
    (lambda f: (f / "0").mkdir(), "0: belongs to no prompt", [2, 2, 2, 2]),
    (lambda f: (f / "00001/samples/notes.txt").touch(), "notes.txt: belongs to no prompt", [2, 2, 2, 2]),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message", "left"), DAMAGES)
def test_damage_is_named_and_the_rest_is_found(folder, damage, message, left):
    damage(folder)
    checksums, problems = inspect(BENCHMARK, folder, 2)
    assert len(problems) == 1 and message in problems[0]
    assert [len(images) for images in checksums.values()] == left


def test_all_damages_are_listed(folder):
    shutil.rmtree(folder / "00001")
    (folder / "00000/samples/00000.png").write_text("x")
    (folder / "extra").mkdir()
    assert len(inspect(BENCHMARK, folder, 2)[1]) == 3
    assert len(inspect(BENCHMARK, folder, 3)[1]) == 6  # and the third image of three prompts


class Detector:
    """Finds a red bus and a faint one in every image."""

    def detect(self, images):
        box = (0.0, 0.0, 4.0, 4.0)
        return [[Detection("bus", 0.2, box), Detection("bus", 0.8, box), Detection("cup", 0.8, box)] for _ in images]

    def colour(self, image, detection):
        return "red"


def test_rows_say_what_counted_and_what_was_missing(folder):
    bus, _ = BENCHMARK.judge(3, BENCHMARK.load(folder, 3, 2)[0], Detector())
    assert bus["correct"] and bus["filename"] == "00003/samples/00000.png"
    assert bus["objects"][0] == {"class": "bus", "confidence": 0.8, "box": (0, 0, 4, 4), "color": "red"}
    assert "color" not in bus["objects"][1], "a cup was not asked for its colour"
    (cups, _) = BENCHMARK.judge(2, BENCHMARK.load(folder, 2, 2)[0], Detector())
    assert cups["objects"] == [] and cups["reasons"] == ["expected cup>=2, found 0"]
    well, verdict, reasons, boxes = BENCHMARK.outcome(bus)
    assert (well, verdict, reasons) == (True, "correct", [])
    assert [box.text for box in boxes] == ["red bus 0.80", "cup 0.80"]


def test_requirements_are_in_words():
    assert BENCHMARK.requirements(1) == ["1 cat", "1 dog, left of the cat"]
    assert BENCHMARK.requirements(2) == ["2 cup", "fewer than 3 cup"]
    assert BENCHMARK.requirements(3) == ["1 red bus"]
