"""The GenEval rules on scripted detections."""

import json
from pathlib import Path

import numpy as np
import pytest

from simplear_rl.benchmarks.geneval import TAGS, confidence_intervals, judge, partial_credit, relative_position, scores
from simplear_rl.vision.detection import Detection

METADATA = Path(__file__).parents[3] / "shared" / "data" / "geneval_evaluation_metadata.jsonl"


def thing(label, x=50, y=50, size=10, confidence=0.95):
    return Detection(label, confidence, (x - size / 2, y - size / 2, x + size / 2, y + size / 2))


def verdict(tag, include, detections, exclude=(), colours=None):
    metadata = {"tag": tag, "include": include, "exclude": list(exclude)}
    return judge(metadata, detections, lambda d: colours[detections.index(d)])


def test_single_object_allows_others():
    include = [{"class": "dog", "count": 1}]
    assert verdict("single_object", include, [thing("cat"), thing("dog"), thing("dog")]).correct
    failed = verdict("single_object", include, [thing("cat")])
    assert not failed.correct
    assert failed.reasons == ["expected dog>=1, found 0"]


@pytest.mark.parametrize(("confidence", "tag", "correct"), [(0.3, "colors", False), (0.31, "two_object", True)])
def test_threshold_is_exclusive(confidence, tag, correct):
    assert verdict(tag, [{"class": "dog", "count": 1}], [thing("dog", confidence=confidence)]).correct is correct


@pytest.mark.parametrize(("threshold", "tag"), [(0.3, "colors"), (0.9, "counting")])
def test_thresholds_are_compared_in_float32(threshold, tag):
    """The official script compares the detector's float32 scores; as a float, the float32 next to 0.3 is above 0.3."""
    include, nearest = [{"class": "dog", "count": 1}], np.float32(threshold)
    above = np.nextafter(nearest, np.float32(1))
    assert not verdict(tag, include, [thing("dog", confidence=float(nearest))]).correct
    assert verdict(tag, include, [thing("dog", confidence=float(above))]).correct


@pytest.mark.parametrize(("found", "correct"), [(2, False), (3, True), (4, False)])
def test_counting_is_exact(found, correct):
    include, exclude = [{"class": "dog", "count": 3}], [{"class": "dog", "count": 4}]
    assert verdict("counting", include, [thing("dog")] * found, exclude).correct is correct


def test_counting_needs_more_confidence():
    include = [{"class": "dog", "count": 1}]
    assert not verdict("counting", include, [thing("dog", confidence=0.9)]).correct
    assert verdict("counting", include, [thing("dog", confidence=0.91)]).correct


def test_colour_is_asked_of_the_most_confident_objects_only():
    include = [{"class": "dog", "count": 1, "color": "red"}]
    detections = [thing("dog", confidence=0.5), thing("dog", confidence=0.9)]
    assert verdict("colors", include, detections, colours=["blue", "red"]).correct
    failed = verdict("colors", include, detections, colours=["red", "blue"])
    assert failed.reasons == ["expected red dog>=1, found blue"]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((-10, 0), {"left of"}),
        ((10, 0), {"right of"}),
        ((0, -10), {"above"}),
        ((0, 10), {"below"}),
        ((10, 10), {"right of", "below"}),
        ((2, 0), set()),  # a tenth of both sizes, 10 and 10, is taken off
        ((4, 0), set()),  # (4 - 2) / 4 is not more than one half
        ((4.1, 0), {"right of"}),
        ((10, 5), {"right of"}),
        ((0, 0), set()),
    ],
)
def test_relative_position(offset, expected):
    a, b = thing("a", 50 + offset[0], 50 + offset[1]), thing("b")
    assert relative_position(a.box, b.box) == expected


def test_position_needs_its_target():
    include = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    assert verdict("position", include, [thing("cat", 80), thing("dog", 20)]).correct
    assert not verdict("position", include, [thing("cat", 20), thing("dog", 80)]).correct
    failed = verdict("position", include, [thing("dog", 20)])
    assert failed.reasons == ["expected cat>=1, found 0", "expected dog left of a target that was not found"]


def test_every_pair_must_stand_in_the_relation():
    include = [{"class": "cat", "count": 2}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    assert verdict("position", include, [thing("cat", 80), thing("cat", 90), thing("dog", 20)]).correct
    assert not verdict("position", include, [thing("cat", 80), thing("cat", 5), thing("dog", 20)]).correct


def test_a_target_of_the_wrong_colour_fails_the_relation():
    include = [{"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "position": ["left of", 0]}]
    failed = verdict("position", include, [thing("cat", 80), thing("dog", 20)], colours=["blue", "blue"])
    assert failed.reasons == ["expected red cat>=1, found blue", "expected dog left of a target that was not found"]


def test_as_many_objects_as_required_must_have_the_colour():
    include = [{"class": "dog", "count": 2, "color": "red"}]
    detections = [thing("dog", confidence=0.9), thing("dog", confidence=0.8), thing("dog", confidence=0.7)]
    assert verdict("colors", include, detections, colours=["red", "red", "blue"]).correct
    assert not verdict("colors", include, detections, colours=["red", "blue", "red"]).correct


def test_excluded_objects_fail_from_their_count_on():
    include, exclude = [{"class": "dog", "count": 1}], [{"class": "cat", "count": 2}]
    assert verdict("two_object", include, [thing("dog"), thing("cat")], exclude).correct
    failed = verdict("two_object", include, [thing("dog"), thing("cat"), thing("cat")], exclude)
    assert failed.reasons == ["expected cat<2, found 2"]


@pytest.mark.parametrize(
    ("relation", "axis", "sign"), [("left of", 0, -1), ("right of", 0, 1), ("above", 1, -1), ("below", 1, 1)]
)
def test_a_direction_counts_beyond_half_of_the_offset(relation, axis, sign):
    """Boxes of side 10 take 2 off each axis: along (4, 0) exactly half is left."""
    include = [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": [relation, 0]}]
    for offset, correct in ((4, False), (4.01, True), (-4.01, False)):
        place = [50, 50]
        place[axis] += sign * offset
        assert verdict("position", include, [thing("cat"), thing("dog", *place)]).correct is correct


def test_objects_that_counted_are_reported_the_most_confident_first():
    detections = [thing("dog", confidence=c) for c in (0.2, 0.5, 0.9)]
    assert [d.confidence for d in verdict("colors", [], detections).objects["dog"]] == [0.9, 0.5]
    assert len(verdict("colors", [], [thing("dog")] * 20).objects["dog"]) == 16


def test_at_most_sixteen_objects_of_a_class_count():
    exclude = [{"class": "dog", "count": 17}]
    assert verdict("two_object", [], [thing("dog")] * 20, exclude).correct


ONE_DOG = {"class": "dog", "count": 1}
RED_DOG_LEFT_OF_CAT = [{"class": "cat", "count": 1}, ONE_DOG | {"color": "red", "position": ["left of", 0]}]
THREE_DOGS = {"include": [{"class": "dog", "count": 3}], "exclude": [{"class": "dog", "count": 4}]}


@pytest.mark.parametrize(
    ("metadata", "detections", "colour", "share"),
    [
        ({"include": [ONE_DOG]}, [], "red", 0),
        ({"include": [ONE_DOG]}, [thing("dog"), thing("cat")], "red", 1),
        ({"include": [ONE_DOG, {"class": "cat", "count": 1}]}, [thing("cat")], "red", 1 / 2),
        (THREE_DOGS, [], "red", 1 / 2),
        (THREE_DOGS, [thing("dog")] * 2, "red", 1 / 2),
        (THREE_DOGS, [thing("dog")] * 3, "red", 1),
        (THREE_DOGS, [thing("dog")] * 4, "red", 1 / 2),
        ({"include": [ONE_DOG | {"color": "red"}]}, [thing("dog")], "blue", 1 / 2),
        ({"include": [ONE_DOG | {"color": "red"}]}, [], "red", 0),
        # Four requirements: cat, dog, its colour, its position.
        ({"include": RED_DOG_LEFT_OF_CAT}, [thing("cat", 80), thing("dog", 20)], "red", 1),
        ({"include": RED_DOG_LEFT_OF_CAT}, [thing("cat", 20), thing("dog", 80)], "red", 3 / 4),
        ({"include": RED_DOG_LEFT_OF_CAT}, [thing("cat", 80), thing("dog", 20)], "blue", 1 / 2),
        ({"include": RED_DOG_LEFT_OF_CAT}, [thing("dog", 20)], "red", 1 / 2),
        ({"include": RED_DOG_LEFT_OF_CAT}, [thing("cat", 80)], "red", 1 / 4),
    ],
)
def test_partial_credit_is_the_share_of_requirements_that_are_met(metadata, detections, colour, share):
    asked = {"tag": "position", **metadata}, detections, lambda d: colour
    assert partial_credit(*asked) == share
    assert (partial_credit(*asked) == 1) == judge(*asked).correct


def test_partial_credit_has_the_benchmarks_thresholds():
    detections = [thing("dog", confidence=0.8)]
    assert partial_credit({"tag": "colors", "include": [ONE_DOG]}, detections, lambda d: "red") == 1
    assert partial_credit({"tag": "counting", "include": [ONE_DOG]}, detections, lambda d: "red") == 0


def test_overall_is_the_mean_of_the_tags():
    rows = [{"tag": tag, "correct": i == 0} for i, tag in enumerate(TAGS)] + [{"tag": TAGS[0], "correct": False}] * 3
    assert scores(rows)[TAGS[0]] == 0.25
    assert scores(rows)["overall"] == pytest.approx(0.25 / 6)
    with pytest.raises(ValueError, match="no images of color_attr"):
        scores(rows[:5])


def test_confidence_intervals_are_those_of_a_proportion():
    rows = [{"index": i, "tag": tag, "correct": i % 5 == 0} for tag in TAGS for i in range(200)]
    low, high = confidence_intervals(rows, seed=0)["counting"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.2 * 0.8 / 200), rel=0.15)
    # Four images of one prompt that always agree are no more evidence than one.
    assert confidence_intervals(rows * 4, seed=0)["counting"] == (low, high)
    # Images of one prompt that differ are: here every prompt has one correct image of five.
    rows = [row | {"index": row["index"] // 5} for row in rows]
    assert confidence_intervals(rows, seed=0)["counting"] == (0.2, 0.2)


@pytest.mark.skipif(not METADATA.exists(), reason=f"{METADATA} is missing")
def test_all_official_prompts_are_judged():
    entries = [json.loads(line) for line in METADATA.read_text().splitlines()]
    counts = {tag: sum(entry["tag"] == tag for entry in entries) for tag in TAGS}
    assert counts == dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
    assert not any(judge(entry, [], lambda d: "red").correct for entry in entries)
