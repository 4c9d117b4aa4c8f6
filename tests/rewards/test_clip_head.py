"""A reward model from human labels: its loss, wrong prompts, and what is saved and read again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from simplear_rl.algorithms.reward_loss import reward_loss
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.reward_model import HeadTrainingConfig
from simplear_rl.config.rewards import ClipHeadRewardConfig
from simplear_rl.data.perturbed import perturbed
from simplear_rl.errors import UserError
from simplear_rl.labelling.labels import ImagePair, Labels
from simplear_rl.reward_model import reward_model
from simplear_rl.rewards.clip_head import ClipHeadReward
from simplear_rl.rewards.human_labels import LabelledFeatures, LabelledImage, read_labels, split
from simplear_rl.shapes.world import pair_samples
from tests.pictures import encoded, picture


def test_the_loss_is_that_of_the_paper():
    rewards = torch.tensor([[0.9, 0.2, 0.4], [0.3, 0.8, 0.1]], requires_grad=True)
    loss = reward_loss(rewards, torch.tensor([1.0, 0.0]), 0.5)
    own = np.exp(0.9) / np.exp([0.9, 0.2, 0.4]).sum()
    assert loss.item() == pytest.approx((0.1**2 + 0.3**2) / 2 - 0.5 * np.log(own))
    loss.backward()
    assert rewards.grad[1, 1:].tolist() == [0.0, 0.0]  # of a bad image no prompt is told
    assert reward_loss(rewards, torch.zeros(2), 0.5).item() == pytest.approx((0.9**2 + 0.3**2) / 2)


def test_wrong_prompts_have_one_word_exchanged():
    random = np.random.default_rng(0)
    wrong = perturbed("two red circles", 6, ["a cat"], random)
    assert len(set(wrong)) == 6 and "two red circles" not in wrong
    for prompt in wrong:
        assert sum(a != b for a, b in zip(prompt.split(), ["two", "red", "circles"], strict=True)) == 1
    assert perturbed("a cat", 2, ["a cat", "a dog", "a cow"], random) in (["a dog", "a cow"], ["a cow", "a dog"])
    with pytest.raises(ValueError, match="expected 3 other prompts, found 2"):
        perturbed("a cat", 3, ["a cat", "a dog", "a cow"], random)


def labelled(folder, rows):
    folder.mkdir()
    captions, *images = pair_samples(20, 0)
    for side, good in enumerate(images):
        for number, image in enumerate(good):
            Image.fromarray(image).save(folder / f"{number}-{side}.png")
    lines = [
        {"file": f"{number}-{side}.png", "prompt": caption, "good": 1 - side}
        for number, caption in enumerate(captions)
        for side in (0, 1)
    ]
    (folder / "good.jsonl").write_text(
        "".join(json.dumps(line | rows.get(i, {})) + "\n" for i, line in enumerate(lines))
    )


def config(world, folder, *more):
    values = [f"root={world}", f"images={folder / 'in'}", f"labels={folder / 'in' / 'good.jsonl'}"]
    values += [f"output={folder / 'out'}", "steps=200", *more]
    return load_config(HeadTrainingConfig, CONFIGS / "shapes" / "reward_model.yaml", values)


def test_a_head_that_has_nothing_to_learn_from_is_refused(world, tmp_path):
    labelled(tmp_path / "in", {})
    with pytest.raises(UserError, match=r"validation \(1\): all labels are held out, none is left to learn from"):
        reward_model(config(world, tmp_path, "validation=1"))
    assert not (tmp_path / "out" / "reward.json").exists()


def test_the_head_learns_its_labels_and_is_read_again(world, tmp_path):
    labelled(tmp_path / "in", {})
    reward_model(config(world, tmp_path, "validation=0.1", "steps=1000"))
    about = json.loads((tmp_path / "out" / "reward.json").read_text())
    assert about["measured"].keys() >= {"squared_error", "accuracy"}
    reward = ClipHeadReward(ClipHeadRewardConfig(path=tmp_path / "out"))
    captions, good, bad = pair_samples(20, 0)
    better, worse = reward.score(good, captions), reward.score(bad, captions)
    assert better.dtype == np.float32 and better.shape == (20,)
    assert better.mean() > worse.mean() + 0.03  # this CLIP, trained for 5 steps, hardly tells images apart
    (tmp_path / "out" / "head.safetensors").unlink()
    with pytest.raises(UserError, match="not a reward model of simplear_rl.reward_model"):
        ClipHeadReward(ClipHeadRewardConfig(path=tmp_path / "out"))


def test_pairs_of_the_labelling_page_are_labels(tmp_path, capsys):
    labels = Labels(tmp_path, [ImagePair("a circle", f"{i}.png", f"{i}b.png") for i in range(3)])
    for number, choice in enumerate(("left", "right", "tie")):
        labels.label("someone", number, choice)
    for name in "0.png", "0b.png", "1.png", "1b.png", "2.png", "2b.png":
        picture(0, 8, 8).save(tmp_path / name)
    judged = {image.file: image.good for image in read_labels(labels.file, tmp_path)}
    expected = {labels.image(0, "left"): 1, labels.image(0, "right"): 0}
    assert judged == expected | {labels.image(1, "right"): 1, labels.image(1, "left"): 0}
    assert "labels.jsonl: 1 ties or pairs without a label are left out" in capsys.readouterr().out
    rows = [json.loads(line) | {"has_label": number != 1} for number, line in enumerate(labels.file.open())]
    labels.file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {image.file: image.good for image in read_labels(labels.file, tmp_path)} == expected
    assert "labels.jsonl: 2 ties or pairs without a label are left out" in capsys.readouterr().out


def test_all_labels_of_an_image_are_on_one_side(tmp_path):
    """Else the head is measured on images that it has learned from."""
    labelled = [LabelledImage(tmp_path / f"{i % 10}.png", f"prompt {i}", float(i % 2)) for i in range(30)]
    held_out, shown = split(labelled, 0.2, seed=0)
    assert sorted([*held_out, *shown]) == list(range(30)) and len(held_out) == 6
    assert not {labelled[i].file for i in held_out} & {labelled[i].file for i in shown}
    assert len(split(labelled, 0, seed=0)[0]) == len(split(labelled, 1, seed=0)[1]) == 0


def test_labels_that_say_nothing_are_an_error(tmp_path):
    (tmp_path / "x.png").touch()
    pair = {"prompt": "a circle", "jpg_0": "x.png", "jpg_1": "x.png", "label_1": 0.5}
    for label, message in (
        (float("nan"), "expected numbers, found nan, 0.5"),
        (0.5, "or pairs without a label alone"),
    ):
        (tmp_path / "labels.jsonl").write_text(json.dumps(pair | {"label_0": label}))
        with pytest.raises(UserError, match=message):
            read_labels(tmp_path / "labels.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((["x.png"], "x.png"), r"row 1: `jpg_0`: expected an image below .*, found \['x.png'\]"),
        (("x.png", 3), "row 1: `jpg_1`: expected an image below .*, found 3"),
        (("x.png", "x.png"), "row 1: `jpg_0`, `jpg_1`: expected two images, found 'x.png' twice"),
        (("x.png", "y" * 400), "row 1: `jpg_1`: expected an image below .*yyy"),
    ],
)
def test_bad_pairs_are_named(tmp_path, images, message):
    picture(0, 8, 8).save(tmp_path / "x.png")
    pair = {"prompt": "a circle", "jpg_0": images[0], "jpg_1": images[1], "label_0": 1, "label_1": 0}
    (tmp_path / "labels.jsonl").write_text(json.dumps(pair))
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "labels.jsonl", tmp_path)


def test_labelled_images_are_read_as_those_that_are_tokenized(world, tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "x.png")

    class Clip:
        def image_features(self, images):
            return torch.tensor(images).float().mean((1, 2))

        def text_features(self, texts):
            return torch.zeros(len(texts), 3)

    of = LabelledFeatures(config(world, tmp_path), [LabelledImage(tmp_path / "x.png", "a red circle", 1)], Clip())
    assert of.images_ND.tolist() == [[255, 255, 255]]


def test_all_damaged_images_are_named_before_anything_is_loaded(world, tmp_path, monkeypatch):
    labelled(tmp_path / "in", {3: {"good": 0.5}})
    for name in "4-0.png", "7-1.png":
        (tmp_path / "in" / name).write_bytes(encoded(picture(1, 64, 64), "PNG")[:-2000])
    monkeypatch.setattr("simplear_rl.reward_model.ClipReward", lambda *_: pytest.fail("loaded"))
    damaged = r".*4-0.png: not a readable image: .*\n.*7-1.png: not a readable image: [^\n]*$"
    with pytest.raises(UserError, match=r"row 4: `good`: expected 1 or 0, found 0.5\n" + damaged):
        reward_model(config(world, tmp_path))


def test_bad_labels_are_listed_together(world, tmp_path):
    labelled(tmp_path / "in", {3: {"good": 0.5}, 7: {"file": "none.png"}})
    with pytest.raises(UserError, match=r"row 4: `good`: expected 1 or 0, found 0.5\n.*row 8: `file`: expected an im"):
        reward_model(config(world, tmp_path))
