"""The miniature world and its detector: what is drawn is what is found."""

from functools import partial

import numpy as np
import pytest

from simplear_rl.benchmarks.geneval import TAGS, judge
from simplear_rl.shapes.world import (
    COLOURS,
    SHAPES,
    WORDS,
    Shape,
    captions,
    detailed,
    evaluation_prompts,
    pair_samples,
    pretrain_samples,
    render,
    rl_prompts,
    sample_scene,
    sft_samples,
    spoiled,
)
from simplear_rl.vision.shapes_detector import ShapesDetector

DETECTOR = ShapesDetector()


def correct(entry, image):
    (detections,) = DETECTOR.detect(image[None])
    return judge(entry, detections, partial(DETECTOR.colour, image)).correct


def test_held_out_captions_are_in_no_training_data():
    held_out = {entry["prompt"] for entry in evaluation_prompts()}
    shown = {*rl_prompts(), *pretrain_samples(3000, 0)[0], *sft_samples(3000, 0)[0]}
    assert not held_out & shown
    assert {word for caption in shown for word in caption.split()} == set(WORDS)


def test_evaluation_has_fifty_prompts_of_each_tag():
    assert [entry["tag"] for entry in evaluation_prompts()] == [tag for tag in TAGS for _ in range(50)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_is_recognised_at_the_edges_too(shape, colour):
    image = render([Shape(shape, colour, x, y) for x, y in ((12, 12), (52, 12), (28, 36))])
    (detections,) = DETECTOR.detect(image[None])
    assert [d.label for d in detections] == [shape] * 3
    assert all(d.confidence > 0.9 and DETECTOR.colour(image, d) == colour for d in detections)


def test_every_scene_meets_its_caption():
    random = np.random.default_rng(0)
    for entry in [e for tags in captions().values() for entries in tags.values() for e in entries[::5]]:
        assert correct(entry, render(sample_scene(entry, random))), entry["prompt"]


def test_of_a_pair_one_scene_meets_the_caption_and_the_other_does_not():
    random = np.random.default_rng(0)
    entries = [e for tags in captions().values() for entries in tags.values() for e in entries[::7]]
    for entry in [*entries, *(detailed(e, random) for e in entries)]:
        scene = sample_scene(entry, random)
        assert correct(entry, render(scene)), entry["prompt"]
        assert not correct(entry, render(spoiled(entry, scene, random))), entry["prompt"]
    texts, chosen, rejected = pair_samples(50, 0)
    assert not {entry["prompt"] for entry in evaluation_prompts()} & set(texts)
    assert all((good != bad).any() for good, bad in zip(chosen, rejected, strict=True))


def test_a_scene_of_another_caption_seldom_passes():
    random = np.random.default_rng(0)
    entries = evaluation_prompts()
    images = [render(sample_scene(entry, random)) for entry in entries]
    passed = [
        correct(entry, images[(i + 7) % 300])
        for i, entry in enumerate(entries)
        if entries[(i + 7) % 300]["prompt"] != entry["prompt"]
    ]
    assert np.mean(passed) < 0.15


def test_pretraining_is_noisy_and_fine_tuning_clean():
    random = np.random.default_rng(0)
    short = [e for entries in captions()[False].values() for e in entries]
    by_caption = {e["prompt"]: e for e in [*short, *(detailed(e, random) for e in short for _ in range(200))]}
    texts, images = sft_samples(300, 1)
    assert all(correct(by_caption[t], i) for t, i in zip(texts, images, strict=True))
    texts, images = pretrain_samples(300, 1)
    assert 0.7 < np.mean([correct(by_caption[t], i) for t, i in zip(texts, images, strict=True)]) < 0.95


def test_long_captions_say_the_colours_and_are_never_held_out():
    random = np.random.default_rng(0)
    held_out = {entry["prompt"] for entry in evaluation_prompts()}
    (entry,) = (e for e in captions()[False]["position"] if e["prompt"] == "a circle left of a square")
    long = {detailed(entry, random)["prompt"] for _ in range(300)}
    assert "a red circle left of a blue square" in long and len(long) == 36
    single = captions()[False]["single_object"]
    assert not held_out & {detailed(e, random)["prompt"] for e in single for _ in range(100)}


def test_data_is_a_function_of_the_seed():
    for make in pretrain_samples, sft_samples:
        first, again, other = make(20, 3), make(20, 3), make(20, 4)
        assert first[0] == again[0] != other[0]
        assert np.array_equal(first[1], again[1])


def test_smears_and_specks_are_not_shapes():
    image = render([])
    image[10:40, 10:50] = COLOURS["red"]
    image[50:53, 50:53] = COLOURS["blue"]
    (detections,) = DETECTOR.detect(image[None])
    assert all(d.confidence < 0.3 for d in detections)
