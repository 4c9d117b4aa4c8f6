"""Our HPSv2 reward beside the package hpsv2 1.2.0, on the same random weights: pictures and captions in, scores out.

The package hard-codes ViT-H-14; both sides get a small network of the same kind under that name. Everything else of the
package is as installed: its preprocessing, tokenizer, network code, checkpoint loading and score.
"""

import gzip
import importlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from simplear_rl.config.rewards import ClipRewardConfig, HpsV2RewardConfig
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.rewards.hpsv2 import HpsV2Reward

SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
CAPTIONS = [
    "a photo of a red bench left of three Dogs",
    "  &quot;café&quot;\n at   night, 1950's ",
    "a cat on a mat, " * 40,  # beyond the context: both read the beginning
]


@pytest.fixture(scope="module")
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-H-14", SMALL)
        yield


@pytest.fixture(scope="module")
def checkpoint(small_network, tmp_path_factory):
    file = tmp_path_factory.mktemp("hpsv2") / "HPS_v2.1_compressed.pt"
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-H-14", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and class embedding start at 0 or 1: no test of them
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save({"state_dict": model.state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def package(checkpoint):
    """hpsv2.img_score, with the small network. The wheel lacks its vocabulary; open_clip has the same file."""
    vocabulary = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with pytest.MonkeyPatch.context() as patch:
        gzip_open = gzip.open
        patch.setattr(gzip, "open", lambda file: gzip_open(vocabulary))
        module = importlib.import_module("hpsv2.img_score")
        factory = importlib.import_module("hpsv2.src.open_clip.factory")
        patch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", SMALL)
        patch.setattr(factory, "download_pretrained", lambda *_, **__: str(checkpoint))
        module.initialize_model()
        yield module


def reward(checkpoint, **more):
    return HpsV2Reward(HpsV2RewardConfig(model="ViT-H-14", weights=str(checkpoint), long_text="truncate", **more))


def pictures(height, width):
    """Sharp edges and noise: both show differences in resampling."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 2, (3, height // 16, width // 16, 3)) * 200
    noise = random.integers(0, 56, (3, height, width, 3))
    return (blocks.repeat(16, axis=1).repeat(16, axis=2) + noise).astype(np.uint8)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("height", "width"), [(1024, 1024), (512, 512), (64, 64), (512, 768), (1024, 592)])
def test_scores_are_those_of_the_package(package, checkpoint, height, width):
    images = pictures(height, width)
    expected = [
        package.score(Image.fromarray(image), text, cp=str(checkpoint))[0]
        for image, text in zip(images, CAPTIONS, strict=True)
    ]
    np.testing.assert_allclose(reward(checkpoint).score(images, CAPTIONS), expected, atol=2e-6)


def test_pixels_are_those_of_the_package(package, checkpoint):
    for shape in (1024, 1024), (512, 768):
        image = pictures(*shape)[0]
        expected = package.model_dict["preprocess_val"](Image.fromarray(image))
        torch.testing.assert_close(reward(checkpoint).preprocess(image), expected, rtol=0, atol=3e-6)


def test_another_transform_would_be_noticed(checkpoint):
    images = pictures(1024, 1024)
    own = reward(checkpoint).score(images, CAPTIONS)
    clip = ClipRewardConfig(model="ViT-H-14", weights=str(checkpoint), long_text="truncate")
    for other in reward(checkpoint, preprocess="simplear"), ClipReward(clip):
        assert np.abs(own - other.score(images, CAPTIONS)).max() > 2e-5  # ten times the tolerance above
