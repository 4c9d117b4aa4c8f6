"""CLIP and HPSv2 rewards on a small open_clip model, and the scorer around them."""

import html
from itertools import combinations
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from simplear_rl.algorithms.combining import batch_normalised, normalised_sum
from simplear_rl.config.rewards import HpsV2RewardConfig, RewardConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Prompt, Rollout
from simplear_rl.policy.sampling import Sampling
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rewards.clip import ClipReward, _text_tokenizer
from simplear_rl.rewards.hpsv2 import HpsV2Reward
from simplear_rl.rewards.metrics import learned_rewards
from simplear_rl.rewards.reward import UnscoredError
from simplear_rl.rewards.scorer import RewardScorer
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
    return Rollout(Prompt(0, text), [1, 2], None, codes, np.zeros((4, 64), np.float32), Sampling(), 0, 0, 1)


def config(clip, **more):
    models = [{"type": "clip", "model": clip, **more}]
    return RewardConfig.model_validate({"models": models})


def clip_reward(clip, **more):
    return ClipReward(config(clip, **more).models[0])


def hpsv2_reward(architecture, weights, **more):
    return HpsV2Reward(HpsV2RewardConfig(model=architecture, weights=str(weights), **more))


def random_images(count, size=64):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_reward_is_the_cosine_of_the_features(folders):
    reward = clip_reward(folders[1], batch_size=3)
    images = random_images(4)
    texts = ["a red circle", "two crosses", "a red circle", "a cross"]
    model, tokenize = reward.model, reward.tokenize
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        expected = torch.nn.functional.cosine_similarity(model.encode_image(pixels), model.encode_text(tokenize(texts)))
    np.testing.assert_allclose(reward.score(images, texts), expected, atol=1e-5)


def test_a_prefix_stands_before_every_text(folders):
    plain, prefixed = clip_reward(folders[1]), clip_reward(folders[1], text_prefix="a red ")
    images = random_images(2)
    expected = plain.score(images, ["a red circle", "a red cross"])
    np.testing.assert_array_equal(prefixed.score(images, ["circle", "cross"]), expected)
    assert plain.too_long(["a " * 11]) == [False] and prefixed.too_long(["a " * 11]) == [True]


def test_captions_are_computed_once_and_in_batches(folders, monkeypatch):
    reward = clip_reward(folders[1], batch_size=2)
    sizes = []
    encode = reward.model.encode_text
    monkeypatch.setattr(reward.model, "encode_text", lambda ids: sizes.append(len(ids)) or encode(ids))
    texts = ["a red circle", "two crosses", "a red circle", "a cross"]
    first = reward.score(random_images(4), texts)
    assert sizes == [2, 1]
    np.testing.assert_array_equal(reward.score(random_images(4), texts), first)
    assert sizes == [2, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close_to_full(folders, tmp_path, dtype):
    images, texts = random_images(4), ["a red circle", "two crosses", "a red circle", "a cross"]
    clip = clip_reward(folders[1])
    torch.save({"state_dict": clip.model.state_dict()}, tmp_path / "hps.pt")
    for exact, half in (
        (clip, clip_reward(folders[1], dtype=dtype)),
        (hpsv2_reward(folders[1], tmp_path / "hps.pt"), hpsv2_reward(folders[1], tmp_path / "hps.pt", dtype=dtype)),
    ):
        assert half.model.visual.conv1.weight.dtype == getattr(torch, dtype)
        found = half.score(images, texts)
        assert found.dtype == np.float32
        assert (found != exact.score(images, texts)).all()
        np.testing.assert_allclose(found, exact.score(images, texts), atol=2e-2)


def test_models_own_preprocessing_is_the_default(folders):
    image = random_images(1, size=256)[0]
    _, _, own = open_clip.create_model_and_transforms(folders[1])
    torch.testing.assert_close(clip_reward(folders[1]).preprocess(image), own(Image.fromarray(image)), rtol=0, atol=0)


def test_simplear_preprocessing_is_bilinear_without_antialiasing(folders):
    """256 to 64 pixels: the sample point lies between the two middle pixels of each four."""
    image = random_images(1, size=256)[0]
    middle = image.reshape(64, 4, 64, 4, 3)[:, 1:3, :, 1:3].mean((1, 3))
    found = clip_reward(folders[1], preprocess="simplear").preprocess(image)
    np.testing.assert_allclose(found.permute(1, 2, 0), middle / 127.5 - 1, atol=1e-5)


def test_text_that_would_be_cut_is_refused(folders):
    reward = clip_reward(folders[1])
    assert reward.check(["a " * 12, "a red circle"]) == []
    with pytest.raises(UserError, match="is longer than the 12 tokens of reward .* so are 1 more of 3 texts"):
        reward.check(["a red circle", "a " * 13, "a " * 40])
    with pytest.raises(UserError, match="longer than the 12 tokens"):
        reward.score(random_images(1), ["a " * 13])


def test_text_that_is_cut_by_choice_is_scored_by_its_beginning_and_counted(folders):
    tokenizer, clip = folders
    prompts = ["a red circle", "a " * 12 + "cross", "a " * 12]
    reward = clip_reward(clip, long_text="truncate")
    assert reward.check(prompts) == prompts[1:2]
    long, beginning = (reward.score(random_images(1), [text]) for text in prompts[1:])
    np.testing.assert_array_equal(long, beginning)

    scorer = RewardScorer(config(clip, long_text="truncate"), tokenizer, LAYOUT)
    (line,) = scorer.check([PromptRow(text) for text in prompts])
    assert "reads only the first 12 tokens of 1 of 3 prompts, for example 'a a a" in line
    assert [scorer.score(rollout(text)).truncated for text in prompts] == [False, True, False]


@pytest.mark.parametrize("words, cut", [(75, False), (76, True), (153, True), (300, True)])
@pytest.mark.parametrize("tokenizer", ["ViT-H-14", "padded with its end"])
def test_cut_text_is_found_whatever_pads_it(folders, tokenizer, words, cut):
    reward = clip_reward(folders[1])
    reward.context_length = 77
    plain = open_clip.get_tokenizer("ViT-H-14")

    def padded_with_its_end(texts, context_length=77):
        ids = plain(texts, context_length)
        return torch.where(ids == 0, plain.eot_token_id, ids)

    reward.tokenize = plain if tokenizer == "ViT-H-14" else padded_with_its_end
    assert reward.too_long(["two cats", "dog " * words]) == [False, cut]


@pytest.mark.parametrize("text", ["a cat<end_of_text> on a mat", "<START_OF_TEXT>cat", "a &lt;end_of_text&gt; cat"])
def test_control_tokens_of_clip_are_characters(text):
    tokenize = _text_tokenizer("ViT-H-14")
    (ids,) = tokenize([text]).tolist()
    start, end = tokenize.all_special_ids
    assert (ids[0], ids.count(start), ids.count(end)) == (start, 1, 1)
    assert tokenize.decode(ids[1 : ids.index(end)]).replace(" ", "") == html.unescape(text).lower().replace(" ", "")


def test_ordinary_texts_have_the_ids_of_the_published_tokenizer():
    texts = ["It's 3 o'clock; a <b>sign</b> $^$ <end", "\u4e00\u53ea\u732b \U0001f9a4", "x" * 400]
    assert torch.equal(_text_tokenizer("ViT-H-14")(texts), open_clip.get_tokenizer("ViT-H-14")(texts))


def test_control_tokens_of_the_miniature_world_are_characters(world):
    model = f"local-dir:{world / 'clip'}"
    tokenize, plain = _text_tokenizer(model), open_clip.get_tokenizer(model)
    special = set(plain.tokenizer.convert_tokens_to_ids(["<|soi|>", "<|t2i|>"]))
    assert special & set(plain(["red <|soi|> circle"])[0].tolist())
    assert not special & set(tokenize(["red <|soi|> circle"])[0].tolist())
    assert torch.equal(tokenize(["a red circle"]), plain(["a red circle"]))


def test_hpsv2_is_the_same_network_with_other_weights(folders, tmp_path):
    clip = clip_reward(folders[1])
    other = {name: value + 0.01 for name, value in clip.model.state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "hps.pt")
    found = hpsv2_reward(folders[1], tmp_path / "hps.pt").score(random_images(2), ["a cross"] * 2)
    clip.model.load_state_dict(other)
    np.testing.assert_allclose(found, clip.score(random_images(2), ["a cross"] * 2), atol=1e-6)


def test_published_hpsv2_weights_come_from_the_hugging_face_cache(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"HPS_v2.1_compressed.pt .* cannot be fetched from xswu/HPSv2"):
        hpsv2_reward(folders[1], "v2.1")
    clip = clip_reward(folders[1])
    for version, shift in ("HPS_v2_compressed.pt", 0.01), ("HPS_v2.1_compressed.pt", 0.02):
        file = tmp_path / "models--xswu--HPSv2" / "snapshots" / "revision" / version
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {name: value + shift for name, value in clip.model.state_dict().items()}}, file)
    (tmp_path / "models--xswu--HPSv2" / "refs").mkdir()
    (tmp_path / "models--xswu--HPSv2" / "refs" / "main").write_text("revision")
    for version, shift in ("v2.0", 0.01), ("v2.1", 0.02):
        loaded = hpsv2_reward(folders[1], version).model
        torch.testing.assert_close(loaded.logit_scale, clip.model.logit_scale + shift)


def test_file_that_is_no_hpsv2_checkpoint_is_refused(folders, tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x.pt: .* expected the key `state_dict`, found \['weights'\]"):
        hpsv2_reward(folders[1], tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"reward hpsv2: cannot load local-dir:.* with weights .*x.pt"):
        hpsv2_reward(folders[1], tmp_path / "x.pt")
    torch.save({"state_dict": {"logit_scale": torch.zeros(())}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="Missing key"):
        hpsv2_reward(folders[1], tmp_path / "x.pt")


def test_full_size_clip_is_what_simplear_rewards_with():
    """CLIP ViT-H-14 without its weights: shapes alone."""
    settings = open_clip.get_pretrained_cfg("ViT-H-14", "laion2b_s32b_b79k")
    assert settings["hf_hub"] == "laion/CLIP-ViT-H-14-laion2B-s32B-b79K/"
    assert (settings["mean"], settings["std"]) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert (settings["interpolation"], settings["resize_mode"]) == ("bicubic", "shortest")
    with torch.device("meta"):
        model = open_clip.create_model("ViT-H-14", load_weights=False, device="meta")
    assert model.context_length == 77
    assert model.visual.image_size == (224, 224)
    assert model.visual.output_dim == model.text_projection.shape[1] == 1024
    visual = sum(parameter.numel() for parameter in model.visual.parameters())
    assert visual == 632_076_800
    assert sum(parameter.numel() for parameter in model.parameters()) - visual == 354_032_641


def test_weights_are_never_random(folders, tmp_path):
    with pytest.raises(UserError, match="cannot load ViT-H-14 with weights no_such_tag"):
        clip_reward("ViT-H-14", weights="no_such_tag")
    folder = Path(folders[1].removeprefix("local-dir:"))
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(UserError, match="pretrained weights"):
        clip_reward(f"local-dir:{tmp_path}")


def test_total_is_the_weighted_sum(folders):
    tokenizer, clip = folders
    plain = RewardScorer(config(clip), tokenizer, LAYOUT).score(rollout())
    doubled = RewardScorer(config(clip, weight=2.0), tokenizer, LAYOUT).score(rollout())
    (values,) = plain.rewards.values()
    assert plain.total.shape == (4,)
    np.testing.assert_array_equal(plain.total, values)
    np.testing.assert_allclose(doubled.total, 2 * plain.total)


def test_diversity_is_that_of_the_image_features_and_the_mean_over_the_models(folders, tmp_path):
    tokenizer, clip = folders
    other = {name: value + 0.01 for name, value in clip_reward(clip).model.state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "hps.pt")
    models = [{"type": "clip", "model": clip}, {"type": "hpsv2", "model": clip, "weights": str(tmp_path / "hps.pt")}]
    both = RewardConfig.model_validate({"models": [*models, {"type": "geneval"}]})
    scorer = RewardScorer(both, tokenizer, LAYOUT)
    images, expected = scorer.decode(rollout()), []
    for _, model in list(scorer.models.models.values())[:2]:
        features = [model.image_features(image[None])[0] for image in images]
        pairs = [1 - torch.dot(a, b) for a, b in combinations(features, 2)]
        expected.append(float(torch.stack(pairs).mean()))
    assert expected[0] != expected[1]
    assert scorer.score(rollout()).diversity == pytest.approx(np.mean(expected), abs=1e-6)

    geneval = RewardScorer(RewardConfig.model_validate({"models": [{"type": "geneval"}]}), tokenizer, LAYOUT)
    assert geneval.score(rollout()).diversity is None
    one = scorer.models.score(images[:1], ["a red circle"], [{}])  # `score` and `compare` may have no more
    assert one.diversity is None and one.total == pytest.approx(scorer.score(rollout()).total[:1], abs=1e-5)


def test_reward_that_is_not_finite_is_refused(folders):
    scorer = RewardScorer(config(folders[1]), folders[0], LAYOUT)
    ((_, model),) = scorer.models.models.values()
    with torch.no_grad():
        model.model.visual.proj.fill_(torch.nan)
    with pytest.raises(UserError, match="nan of prompt 'a red circle', sample 0: expected a finite number"):
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
    with pytest.raises(UserError, match="cannot load local-dir:") as error:
        clip_reward(f"local-dir:{tmp_path}")
    assert str(tmp_path) in str(error.value)


class Counting:
    """A reward that fails, or says that an image cannot be scored, when it is told to."""

    context_length = None

    def __init__(self, config, device):
        self.answer = np.arange(4, dtype=np.float32)

    def too_long(self, texts):
        return [False] * len(texts)

    def score(self, images, texts, columns):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def python_scorer(tokenizer, **more):
    """A scorer with a function of the user's, which Counting stands for."""
    models = [{"type": "python", "function": "m:f", **more}]
    scorer = RewardScorer(RewardConfig.model_validate({"models": models}), tokenizer, LAYOUT, build=Counting)
    return scorer, scorer.models.models["f"][1]


def test_a_group_that_cannot_be_scored_ends_the_run_or_is_left_out(folders, caplog):
    scorer, model = python_scorer(folders[0])
    model.answer = np.float32([0, np.nan, 0, 0])
    with pytest.raises(UserError, match="reward f nan of prompt 'a red circle', sample 1: expected a finite number"):
        scorer.score(rollout())
    model.answer = UnscoredError("reward f (m:f): no face")
    with pytest.raises(UserError, match=r"step 1: prompt 'a red circle': reward f \(m:f\): no face"):
        scorer.score(rollout())

    scorer, model = python_scorer(folders[0], on_error="skip_group")
    assert scorer.score(rollout()).total.tolist() == [0, 1, 2, 3]
    for answer, reason in (
        (UnscoredError("reward f (m:f): no face"), "reward f (m:f): no face"),
        (np.float32([0, np.nan, 0, 0]), "reward f: the score 'f' of image 1 is nan, expected a number"),
    ):
        model.answer = answer
        scores = scorer.score(rollout())
        assert (scores.error, scores.rewards) == (reason, {})
        assert np.isnan(scores.total).all()
        assert f"step 1: prompt 'a red circle' is left out: {reason}" in caplog.text
    model.answer = UserError("expected 4 numbers")  # a mistake is none of a sample
    with pytest.raises(UserError, match="expected 4 numbers"):
        scorer.score(rollout())


def test_bounds_cut_a_reward_and_the_share_is_known(folders):
    scorer, model = python_scorer(folders[0], bounds=[0.5, 2.5], weight=2)
    scores = scorer.score(rollout())
    assert scores.rewards["f"].tolist() == [0.5, 1, 2, 2.5]
    assert scores.total.tolist() == [1, 2, 4, 5]
    assert scores.clipped == {"f": 0.5}
    model.answer = {"a": np.zeros(4, np.float32), "b": np.ones(4, np.float32)}
    assert {name: values.tolist() for name, values in scorer.score(rollout()).rewards.items()} == {
        "f_a": [0.5] * 4,
        "f_b": [1] * 4,
    }
    with pytest.raises(ValueError, match="expected \\[lowest, highest\\]"):
        python_scorer(folders[0], bounds=[1, 1])


def test_gdpo_adds_the_normalised_sum(folders):
    models = [{"type": "python", "function": "m:f"}, {"type": "python", "function": "m:g", "weight": 0.5}]
    config = RewardConfig.model_validate({"models": models, "aggregate": "gdpo"})
    scorer = RewardScorer(config, folders[0], LAYOUT, build=Counting)
    scorer.models.models["g"][1].answer = np.float32([4, 1, 0, 0])
    scores = scorer.score(rollout())
    stacked = np.float32([[0, 1, 2, 3], [4, 1, 0, 0]])
    np.testing.assert_array_equal(scores.normalised, normalised_sum(stacked, [1, 0.5]))
    assert scores.total.tolist() == [2, 1.5, 2, 3]
    (learned,) = learned_rewards([scores])
    np.testing.assert_allclose(learned, batch_normalised([normalised_sum(stacked, [1, 0.5])])[0], rtol=1e-6)
