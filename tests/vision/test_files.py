"""What judges images is looked for before it is loaded: in folders, in the cache, by the names that open_clip knows."""

import json

import huggingface_hub.constants
import pytest

from simplear_rl.config.base import CONFIGS
from simplear_rl.config.benchmarks import DetectorConfig, EvaluateConfig
from simplear_rl.config.load import load_config
from simplear_rl.errors import UserError
from simplear_rl.vision.files import require_clip, require_detector, require_judge
from tests.visual_judge import make_model


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A function that puts empty files of a repository into the Hugging Face cache, as the Hub's client lays it out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def cached(repository, *files):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / "snapshots" / ("0" * 40) / file).touch()

    return cached


def dpg(model):
    values = ["policy=p", "prompts=p", "questions=q", f"judge.model={model}"]
    return load_config(EvaluateConfig, CONFIGS / "dpg" / "evaluate.yaml", values)


def test_a_judge_in_a_folder(tmp_path):
    require_judge(dpg(make_model(tmp_path / "judge")))
    require_judge(dpg(tmp_path / "none"))  # the paths of a configuration are looked for elsewhere
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="judge/model.safetensors: not a readable safetensors file"):
        require_judge(dpg(tmp_path / "judge"))
    (tmp_path / "judge" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="judge: no weights there"):
        require_judge(dpg(tmp_path / "judge"))


def test_a_judge_in_the_cache_is_whole_or_named(cached):
    cached("owner/judge", "config.json")
    with pytest.raises(
        UserError, match=r"owner/judge: model.safetensors or model.safetensors.index.json is not in the"
    ):
        require_judge(dpg("owner/judge"))
    cached("owner/judge", "model.safetensors.index.json")
    require_judge(dpg("owner/judge"))


def test_the_models_of_a_detector_are_named_together(detector_config, cached):
    require_detector(detector_config)
    asked = DetectorConfig()
    with pytest.raises(UserError) as error:
        require_detector(asked)
    lines = str(error.value).split("\n")
    assert [line.split(":")[0] for line in lines] == [str(asked.model), "timm/vit_large_patch14_clip_224.openai"]
    cached(str(asked.model), "config.json", "model.safetensors")
    cached("timm/vit_large_patch14_clip_224.openai", "open_clip_model.safetensors")
    require_detector(asked)


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("ViT-L-41", "openai", "a reward ViT-L-41: open_clip knows no such model"),
        ("foo:ViT-L-14", "openai", "a reward foo:ViT-L-14: open_clip knows no such model"),
        ("", None, "a reward : open_clip knows no such model"),
        ("ViT-L/14", "/nowhere.pt", "weights '/nowhere.pt' are neither a file nor known to open_clip; it knows openai"),
        ("ViT-L-14", None, "weights '' are neither"),
        ("ViT-L-14", "openai", "were trained with another activation: the model is ViT-L-14-quickgelu"),
        (
            "ViT-L-14",
            "laion2b_s32b_b82k",
            "laion/CLIP-ViT-L-14-laion2B-s32B-b82K: open_clip_model.safetensors or open_",
        ),
        ("ViTamin-S", "datacomp1b", "jienengchen/ViTamin-S: pytorch_model.safetensors or pytorch_model.bin is not"),
        ("hf-hub:owner/name", None, "owner/name: open_clip_config.json is not in the Hugging Face cache"),
        ("hf-hub:", None, "open_clip_config.json is not"),
        ("hf-hub:a/b/c", None, "a/b/c: open_clip_config.json is not"),
    ],
)
def test_what_open_clip_would_not_find_is_named(cached, model, weights, message):
    with pytest.raises(UserError, match=message):
        require_clip("a reward", model, weights)


def test_what_open_clip_would_find_passes(cached, tmp_path, detector_config):
    (tmp_path / "weights.pt").touch()
    require_clip("a reward", "ViT-L/14", str(tmp_path / "weights.pt"))
    cached("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", "open_clip_pytorch_model.bin")
    require_clip("a reward", "ViT-L-14", "laion2b-s32b-b82k")  # as open_clip takes it
    cached("owner/name", "open_clip_config.json", "open_clip_model.safetensors")
    require_clip("a reward", "hf-hub:owner/name", None)
    require_clip("a reward", detector_config.clip, None)
    require_clip("a reward", f"local-dir:{tmp_path}/none", None)


def test_a_folder_of_open_clip_is_whole_or_named(tmp_path):
    with pytest.raises(UserError, match="open_clip_config.json: expected the configuration"):
        require_clip("a reward", f"local-dir:{tmp_path}", None)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(UserError, match="no weights there"):
        require_clip("a reward", f"local-dir:{tmp_path}", None)
    (tmp_path / "open_clip_pytorch_model.bin").touch()
    require_clip("a reward", f"local-dir:{tmp_path}", None)
