"""The detector on real classes of Mask2Former and CLIP with random weights, and on outputs written by hand."""

import json

import numpy as np
import pytest
import torch

from simplear_rl.errors import UserError
from simplear_rl.vision import coco_detector
from simplear_rl.vision.coco_classes import CLASSES, COLOURS
from simplear_rl.vision.coco_detector import CocoDetector, _instances
from simplear_rl.vision.detection import Detection


@pytest.fixture
def small_sides(monkeypatch):
    """Images enter Mask2Former small: random weights see nothing anyway."""
    monkeypatch.setattr(coco_detector, "SIZE", {"shortest_edge": 64, "longest_edge": 128})


@pytest.fixture(scope="module")
def detector(detector_config):
    return CocoDetector(detector_config)


def test_a_batch_finds_what_single_images_find(detector, pictures, small_sides):
    together = detector.detect(pictures)
    for image, found in zip(pictures, together, strict=True):
        (alone,) = detector.detect([image])
        assert [d.label for d in alone] == [d.label for d in found]
        assert [d.confidence for d in alone] == pytest.approx([d.confidence for d in found], abs=1e-5)
        assert len(found) == 100 and all(d.mask.shape == image.shape[:2] for d in found)
        assert all(0 < d.confidence < 1 for d in found)
        for d in found:
            x0, y0, x1, y1 = (int(edge) for edge in d.box)
            assert d.mask[y0:y1, x0:x1].sum() == d.mask.sum() and d.mask[y0].any() and d.mask[:, x1 - 1].any()


def test_images_enter_at_the_official_size(detector, monkeypatch):
    entered = []

    def forward(pixels):
        entered.append(pixels.shape)
        raise InterruptedError

    monkeypatch.setattr(detector, "model", forward)
    for side in 512, 1024:
        with pytest.raises(InterruptedError):
            detector.detect([np.zeros((side, side, 3), np.uint8)] * 2)
    assert entered == [(2, 3, 800, 800)] * 2


def test_masks_become_instances():
    """Two queries at a quarter of the size: a left half, sure, and a right half, less sure, of two classes."""
    masks = torch.full((2, 4, 4), -20.0)
    masks[0, :, :2], masks[1, :, 2:] = 20.0, 1.0
    classes = torch.full((2, 80), 1e-4)
    classes[0, CLASSES.index("dog")], classes[1, CLASSES.index("cat")], classes[1, CLASSES.index("tv")] = 0.9, 0.5, 0.4
    dog, cat, tv, *rest = _instances(classes, masks, (16, 16), (32, 32))
    assert (dog.label, cat.label, tv.label) == ("dog", "cat", "tv")
    assert dog.confidence == pytest.approx(0.9, abs=0.02)
    # The mean probability of the mask's pixels lowers the confidence.
    assert 0.5 * 0.6 < cat.confidence < 0.5 * torch.tensor(1.0).sigmoid().item() + 1e-3
    assert dog.box == (0, 0, 16, 32)
    assert cat.box == tv.box and cat.box[2:] == (32, 32)
    assert np.shares_memory(cat.mask, tv.mask) and all(d.confidence < 0.01 for d in rest)


def test_a_query_without_pixels_is_no_detection():
    masks = torch.full((2, 4, 4), -1.0)
    masks[0] = 1.0
    found = _instances(torch.rand(2, 80), masks, (16, 16), (32, 32))
    assert 0 < len(found) < 100 and all(d.box == (0, 0, 32, 32) for d in found)


def test_colour_is_asked_of_the_object_alone(detector, monkeypatch):
    shown = []
    monkeypatch.setattr(detector, "preprocess", lambda image: shown.append(image) or torch.zeros(3, 32, 32))
    image = np.full((20, 30, 3), 7, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:10, 10:20] = True
    mask[5, 10] = False
    assert detector.colour(image, Detection("tv remote", 0.9, (10.0, 5.0, 20.0, 10.0), mask)) in COLOURS
    pixels = np.asarray(shown[0])
    assert pixels.shape == (5, 10, 3)
    assert (pixels[0, 0] == 0x99).all() and (pixels[1:] == 7).all()


def test_the_colour_is_that_of_the_nearest_texts(detector, monkeypatch, pictures):
    """Image features equal to a colour's mean text features: that colour."""
    detection = Detection("bus", 0.9, (0.0, 0.0, 48.0, 48.0), np.ones((48, 48), bool))
    texts = [f"a photo of a purple {end}" for end in ("bus", "object")] + ["a photo of a purple-colored bus"]
    with torch.no_grad():
        features = detector.clip.encode_text(detector.tokenize(texts), normalize=True).mean(dim=0, keepdim=True)
    monkeypatch.setattr(detector.clip, "encode_image", lambda pixels: features)
    assert detector.colour(pictures[0], detection) == "purple"


def test_half_precision_finds_the_same(detector, detector_config, pictures, small_sides):
    half = CocoDetector(detector_config.model_copy(update={"dtype": "bfloat16"}))
    assert next(half.model.parameters()).dtype == torch.bfloat16
    for full, low in zip(detector.detect(pictures), half.detect(pictures), strict=True):
        assert low[0].confidence == pytest.approx(full[0].confidence, rel=0.2)
    assert half.colour(pictures[0], half.detect(pictures[:1])[0][0]) in COLOURS


def damaged(config, tmp_path, **changes):
    folder = tmp_path / "mask2former"
    folder.mkdir()
    for file in config.model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return config.model_copy(update={"model": folder})


def test_other_classes_are_refused_and_other_spellings_taken(detector_config, tmp_path):
    shifted = {str(i): name for i, name in enumerate([*CLASSES[1:], CLASSES[0]])}
    with pytest.raises(UserError, match="expected COCO's 80 classes in order, found 80; class 0 is 'bicycle'"):
        CocoDetector(damaged(detector_config, tmp_path, id2label=shifted))
    old = {str(i): {"tv": "tvmonitor"}.get(name, name.replace(" ", "")) for i, name in enumerate(CLASSES)}
    (tmp_path / "other").mkdir()
    CocoDetector(damaged(detector_config, tmp_path / "other", id2label=old))


def test_missing_weights_are_refused(detector_config, tmp_path):
    with pytest.raises(UserError, match="weights are missing, for example"):
        CocoDetector(damaged(detector_config, tmp_path, decoder_layers=4))
    with pytest.raises(UserError, match=r"nowhere: cannot be loaded"):
        CocoDetector(detector_config.model_copy(update={"model": tmp_path / "nowhere"}))
    with pytest.raises(UserError, match=r"detector.clip local-dir:/nowhere with weights None: cannot be loaded"):
        CocoDetector(detector_config.model_copy(update={"clip": "local-dir:/nowhere"}))
