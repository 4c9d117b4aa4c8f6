"""CLIP and HPSv2 rewards on a small open_clip model, and the scorer around them."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from simplear_rl.config import RewardConfig
from simplear_rl.errors import UserError
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.hpsv2 import HpsV2Reward
from simplear_rl.rewards.scorer import RewardScorer
from simplear_rl.rollout.sampling import Sampling
from simplear_rl.rollout.types import Prompt, Rollout
from simplear_rl.shapes import clip_training
from simplear_rl.tokenizers.cosmos import CosmosTokenizer
from simplear_rl.tokenizers.fsq import FsqTokenizer, export

LAYOUT = ImageLayout(40, 1000, 8, 8, "A photo of ")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tokenizer, clip = tmp_path_factory.mktemp("tokenizer"), tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    export(FsqTokenizer(), tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_training, "IMAGES", 64)
        clip_training.train_clip(clip, CosmosTokenizer(tokenizer), seed=0, steps=3)
    return tokenizer, f"local-dir:{clip}"


def rollout(text="a red circle"):
    codes = np.random.default_rng(0).integers(0, 1000, (4, 64)).astype(np.uint16)
    return Rollout(Prompt(0, text), [1, 2], None, codes, np.zeros((4, 64), np.float32), Sampling(), 0, (0, 1))


def config(clip, **more):
    models = [{"type": "clip", "model": clip, **more}]
    return RewardConfig.model_validate({"models": models})


def test_reward_is_the_cosine_of_the_features(folders):
    reward = ClipReward(folders[1], batch_size=3)
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    texts = ["a red circle", "two crosses", "a red circle", "a cross"]
    model, tokenize = reward.model, reward.tokenize
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        expected = torch.nn.functional.cosine_similarity(model.encode_image(pixels), model.encode_text(tokenize(texts)))
    np.testing.assert_allclose(reward.score(images, texts), expected, atol=1e-5)


def test_text_that_would_be_cut_is_refused(folders):
    reward = ClipReward(folders[1])
    reward.check(["a " * 12, "a red circle"])
    with pytest.raises(UserError, match="is longer than the 12 tokens of reward"):
        reward.check(["a red circle", "a " * 13])
    with pytest.raises(UserError, match="longer than the 12 tokens"):
        reward.score(np.zeros((1, 64, 64, 3), np.uint8), ["a " * 13])


def test_hpsv2_is_the_same_network_with_other_weights(folders, tmp_path):
    clip = ClipReward(folders[1])
    other = {name: value + 0.01 for name, value in clip.model.state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "hps.pt")
    hps = HpsV2Reward(folders[1], str(tmp_path / "hps.pt"))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    found = hps.score(images, ["a cross"] * 2)
    clip.model.load_state_dict(other)
    np.testing.assert_array_equal(found, clip.score(images, ["a cross"] * 2))


def test_file_that_is_no_hpsv2_checkpoint_is_refused(folders, tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: .* expected the key `state_dict`, found \['weights'\]"):
        HpsV2Reward(folders[1], str(tmp_path / "x.pt"))


def test_total_is_the_weighted_sum(folders):
    tokenizer, clip = folders
    plain = RewardScorer(config(clip), tokenizer, LAYOUT).score(rollout())
    doubled = RewardScorer(config(clip, weight=2.0), tokenizer, LAYOUT).score(rollout())
    (name,) = plain.keys() - {"total"}
    assert plain["total"].shape == (4,)
    np.testing.assert_array_equal(plain["total"], plain[name])
    np.testing.assert_allclose(doubled["total"], 2 * plain["total"])


def test_reward_that_is_not_finite_is_refused(folders):
    scorer = RewardScorer(config(folders[1]), folders[0], LAYOUT)
    ((_, model),) = scorer.models.values()
    with torch.no_grad():
        model.model.visual.proj.fill_(torch.nan)
    with pytest.raises(UserError, match="of prompt 'a red circle', sample 0 is nan: expected a finite number"):
        scorer.score(rollout())


def test_trained_clip_is_a_folder_of_open_clip(folders):
    model, _, preprocess = open_clip.create_model_and_transforms(folders[1])
    assert model.visual.image_size == (64, 64)
    assert preprocess is not None


def test_damaged_model_is_named(folders, tmp_path):
    folder = Path(folders[1].removeprefix("local-dir:"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="open_clip cannot load this model") as error:
        ClipReward(f"local-dir:{tmp_path}")
    assert str(tmp_path) in str(error.value)
