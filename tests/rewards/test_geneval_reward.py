"""GenEval as a reward: its verdicts on pictures of the miniature world, and its real detector with random weights."""

import json

import numpy as np
import pytest

from simplear_rl.config.rewards import GenEvalRewardConfig, RewardConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError
from simplear_rl.rewards.files import check_rewards
from simplear_rl.rewards.geneval import GenEvalReward
from simplear_rl.shapes.world import metadata, render, rl_prompts, sample_scene

ENTRIES = {entry["prompt"]: entry for entry in metadata()}
COW = {"tag": "counting", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a red cow"}


def reward(credit, **more):
    return GenEvalReward(GenEvalRewardConfig(credit=credit, **more))


def test_every_training_prompt_of_the_world_is_rewarded_for_its_scene():
    random = np.random.default_rng(0)
    texts = sorted(set(rl_prompts()))
    images = np.stack([render(sample_scene(ENTRIES[text], random)) for text in texts])
    for credit in "correct", "partial":
        model = reward(credit)
        assert model.check(texts) == [] and not any(model.too_long(texts))
        found = model.score(images, texts)
        assert found.dtype == np.float32 and (found == 1).all()


def test_a_scene_of_another_prompt_has_part_of_the_credit():
    texts = ["a red circle and a blue square", "a cross left of a square", "two circles", "a circle"]
    shown = ["a red circle and a green square", "a cross right of a square", "three circles", "a square"]
    random = np.random.default_rng(0)
    images = np.stack([render(sample_scene(ENTRIES[text], random)) for text in shown])
    assert reward("correct").score(images, texts).tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(reward("partial").score(images, texts), [3 / 4, 2 / 3, 1 / 2, 0])


def test_mask2former_and_clip_judge_where_there_is_metadata(tmp_path, detector_config, pictures):
    (tmp_path / "metadata.jsonl").write_text(json.dumps(COW) + "\n")
    model = reward("partial", metadata=tmp_path / "metadata.jsonl", detector=detector_config)
    assert model.score(np.stack(pictures[:3]), ["a red cow"] * 3).tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="metadata.jsonl does not say what images of 'a cow' .* 0 more of 2 prompts"):
        model.check(["a red cow", "a cow"])


def test_metadata_is_read_before_anything_starts_and_must_not_contradict_itself(tmp_path, detector_config):
    file = tmp_path / "metadata.jsonl"
    model = {"type": "geneval", "metadata": file, "detector": detector_config}
    file.write_text(json.dumps(COW | {"tag": "cows"}) + "\n")
    with pytest.raises(UserError, match="metadata.jsonl, line 1: tag: expected one of"):
        check_rewards(RewardConfig.model_validate({"models": [model]}), [PromptRow("a red cow")])
    file.write_text(json.dumps(COW) + "\n" + json.dumps(COW | {"tag": "colors"}) + "\n")
    with pytest.raises(UserError, match="metadata.jsonl: two entries of 'a red cow' ask for different things"):
        check_rewards(RewardConfig.model_validate({"models": [model]}), [PromptRow("a red cow")])
