"""GenEval's metadata file: good lines are taken as they are, bad ones named."""

import json
from pathlib import Path

import pytest

from simplear_rl.benchmarks.geneval import judge
from simplear_rl.benchmarks.geneval_metadata import read_entries, read_metadata
from simplear_rl.data.prompts import read_prompts
from simplear_rl.errors import UserError
from simplear_rl.vision.detection import Detection

OFFICIAL = Path(__file__).parents[3] / "shared" / "data" / "geneval_evaluation_metadata.jsonl"
needs_official = pytest.mark.skipif(not OFFICIAL.exists(), reason=f"{OFFICIAL} is missing")
COW = {"tag": "counting", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}
PLACES = {"left of": (10, 50), "right of": (90, 50), "above": (50, 10), "below": (50, 90)}


def scene(entry):
    """Detections that meet an entry, and the colour of each."""
    detections, colours = [], {}
    for required in entry["include"]:
        for _ in range(required["count"]):
            x, y = PLACES[required["position"][0]] if "position" in required else (50, 50)
            detection = Detection(required["class"], 0.95, (x - 5, y - 5, x + 5, y + 5))
            detections.append(detection)
            colours[id(detection)] = required.get("color", "grey")
    return detections, lambda detection: colours[id(detection)]


@needs_official
def test_every_official_prompt_passes_on_its_scene_and_fails_on_any_object_less():
    entries = read_metadata(OFFICIAL)
    assert len(entries) == 553
    for entry in entries:
        detections, colour_of = scene(entry)
        assert judge(entry, detections, colour_of).correct, entry["prompt"]
        for i in range(len(detections)):
            assert not judge(entry, detections[:i] + detections[i + 1 :], colour_of).correct, entry["prompt"]


@needs_official
def test_every_official_prompt_fails_on_what_its_tag_is_about():
    for entry in read_metadata(OFFICIAL):
        detections, colour_of = scene(entry)
        if entry["tag"] == "counting":
            detections.append(Detection(entry["include"][0]["class"], 0.95, (0, 0, 9, 9)))
        elif entry["tag"] == "position":
            detections[1] = Detection(detections[1].label, 0.95, detections[0].box)
        else:
            # What else there is does no harm, but another colour or a low confidence does.
            assert judge(entry, [*detections, Detection("person", 0.99, (0, 0, 9, 9))], colour_of).correct
            detections[0] = Detection(detections[0].label, 0.3, detections[0].box)
            assert (
                entry["tag"] not in ("colors", "color_attr")
                or not judge(entry, scene(entry)[0], lambda d: "grey").correct
            )
        assert not judge(entry, detections, colour_of).correct, entry["prompt"]


def test_nulls_of_a_table_require_nothing(tmp_path):
    file = tmp_path / "metadata.jsonl"
    objects = [{"class": "cow", "count": 1}, {"class": "dog", "count": 1, "color": "red", "position": ["above", 0]}]
    nulls = {"color": None, "position": None}
    lines = [COW | {"include": objects}, COW | {"include": [nulls | required for required in objects]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entries = read_entries(file)
    assert entries == [lines[0]] * 2


def test_prompts_are_those_of_the_prompts_file(tmp_path):
    file = tmp_path / "metadata.jsonl"
    prompts = ["a photo\u00a0of a cow ", "two\u2028cows", "\ufeffcows\u2029"]
    lines = [json.dumps(COW | {"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts]
    file.write_text("".join(lines), encoding="utf-8")
    assert (
        [entry["prompt"] for entry in read_entries(file)]
        == read_prompts(file, lambda text: [])
        == [
            "a photo of a cow",
            "two cows",
            "cows",
        ]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "cows"}, "tag: expected one of single_object, two_object.*, found 'cows'"),
        ({"prompt": " "}, "prompt: "),
        ({"prompt": "\ufeff\u00a0"}, "prompt: "),
        ({"prompt": None}, "prompt: .*valid string, found None"),
        ({"include": []}, "include: .*at least 1 item"),
        ({"include": [{"class": "cow", "count": 0}]}, "include.0.count: .*greater than or equal to 1, found 0"),
        ({"include": [{"class": "cow", "count": "1"}]}, "include.0.count: .*valid integer, found '1'"),
        ({"include": [{"count": 1}]}, "include.0.class: Field required"),
        ({"include": [{"class": "tv monitor", "count": 1}]}, "include.0.class: expected one of person.*'tv monitor'"),
        ({"include": [{"class": "cow", "count": 1, "color": "teal"}]}, "include.0.color: expected one of red.*'teal'"),
        ({"include": [{"class": "cow", "count": 1, "position": ["left", 0]}]}, "include.0.position.0: .*found 'left'"),
        ({"include": [{"class": "cow", "count": 1, "position": ["above", 0]}]}, "include.0.position: expected an earl"),
        ({"exclude": [{"class": "cow", "count": 2, "color": "red"}]}, "exclude.0.color: Extra inputs"),
        ({"including": []}, "including: Extra inputs"),
    ],
)
def test_bad_lines_are_named(tmp_path, change, message):
    file = tmp_path / "metadata.jsonl"
    file.write_text(json.dumps(COW) + "\n" + json.dumps(COW | change) + "\n")
    with pytest.raises(UserError, match=f"metadata.jsonl, line 2: {message}"):
        read_metadata(file)


def test_all_bad_lines_are_named_and_what_is_no_json(tmp_path):
    file = tmp_path / "metadata.jsonl"
    file.write_text("{\n\n" + json.dumps(COW))
    with pytest.raises(UserError, match=r"line 1: Invalid JSON(.|\n)*line 2: Invalid JSON"):
        read_metadata(file)
    file.write_text("{\n" + json.dumps(COW).replace('"count": 1', '"count": 1, "count": 2'))
    with pytest.raises(UserError, match=r"line 1: Invalid JSON.*\n.*l, line 2: two keys are called count$"):
        read_metadata(file)


def test_a_missing_file_or_tag_is_refused(tmp_path):
    with pytest.raises(UserError, match="it is published at https://github.com/djghosh13/geneval"):
        read_metadata(tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match="metadata.jsonl: empty"):
        read_metadata(tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(COW) + "\n")
    assert read_entries(tmp_path / "metadata.jsonl") == [COW]
    with pytest.raises(UserError, match="no prompts of single_object, two_object, colors, position, color_attr"):
        read_metadata(tmp_path / "metadata.jsonl")
