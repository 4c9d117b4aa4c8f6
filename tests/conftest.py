"""Shared pieces: a tiny policy folder, an engine on it, a learner on it. Real vLLM, DeepSpeed and Ray throughout."""

import os

# Before any library reads them: one thread makes float32 sums reproducible, and nothing leaves the machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["NETRC"] = os.environ["WANDB_CONFIG_DIR"] = os.devnull  # the profile's key and settings stay unread
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("WANDB_PROJECT", None)
os.environ.pop("WANDB_ENTITY", None)
os.environ.pop("WANDB_RUN_ID", None)
os.environ.pop("WANDB_RUN_GROUP", None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # as in actors.connection
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = os.environ["RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"] = "1"

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from filelock import FileLock

from simplear_rl.config.base import ActorsConfig
from simplear_rl.config.benchmarks import DetectorConfig
from simplear_rl.config.learner import LearnerConfig, OptimizerConfig
from simplear_rl.config.rollout import EngineConfig
from simplear_rl.policy.model import random_policy, word_tokenizer
from simplear_rl.run.history import read_metrics

torch.set_num_threads(1)

WORDS = [
    "A",
    "photo",
    "of",
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "cross",
    "one",
    "two",
    "three",
    "and",
    "left",
    "above",
]
GRID = (4, 4)
CODES = 100
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def without_times(run: Path) -> list[dict[str, float]]:
    """The metrics of a run but for its seconds, which no two runs share."""
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all test processes share: the first one that needs it makes it."""
    root = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    done = root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            make(root / name)
            done.touch()
    return root / name


def make_policy(folder: Path, seed: int = 0) -> Path:
    """A random policy of 16-token images from 100 codes."""
    random_policy(
        folder,
        word_tokenizer(WORDS),
        codebook_size=CODES,
        grid=GRID,
        prompt_prefix="A photo of ",
        geometry={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
        },
        seed=seed,
    )
    return folder


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def engine_config() -> EngineConfig:
    return EngineConfig(max_concurrent=8, kv_cache_gib=0.05, max_prompt_tokens=150)


@pytest.fixture(scope="session")
def learner_config() -> LearnerConfig:
    return LearnerConfig(optimizer=OptimizerConfig(learning_rate=1e-3), actors=ActorsConfig())


@pytest.fixture(scope="session")
def ray_cluster():
    """A local cluster with more logical CPUs than the machine has, so that several actors fit."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


class Process:
    """A process that calls functions. DeepSpeed's process group lasts as long as its process."""

    def call(self, function, *args):
        return function(*args)


@pytest.fixture(scope="session")
def run(ray_cluster):
    """Runs functions with learners of one rank in a process that all tests share: importing DeepSpeed takes seconds."""
    process = ray.remote(num_cpus=0.1)(Process).remote()
    return lambda function, *args: ray.get(process.call.remote(function, *args))


@pytest.fixture(scope="session")
def run_two_ranks(ray_cluster):
    """Runs `function(*args, rank, rendezvous)` on both ranks of a group; all tests share the two processes."""
    processes = [ray.remote(num_cpus=0.1)(Process).remote() for _ in range(2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"tcp://127.0.0.1:{free.getsockname()[1]}"

    def run_two_ranks(function, *args):
        calls = [process.call.remote(function, *args, rank, rendezvous) for rank, process in enumerate(processes)]
        return ray.get(calls)

    return run_two_ranks


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the miniature world in which nothing has been trained for more than a few steps."""
    from simplear_rl.config.base import CONFIGS
    from simplear_rl.config.load import load_config
    from simplear_rl.config.stages import SupervisedConfig
    from simplear_rl.inputs import require
    from simplear_rl.shapes import clip_training, prepare

    def make(root: Path) -> None:
        config = load_config(SupervisedConfig, CONFIGS / "shapes" / "pretrain.yaml", [f"root={root}"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prepare, "TOKENIZER_STEPS", 5)
            patch.setattr(prepare, "CLIP_STEPS", 5)
            patch.setattr(prepare, "PRETRAIN_IMAGES", 64)
            patch.setattr(clip_training, "IMAGES", 64)
            for made in "tokenizer", "clip", "policy", "data/pretrain", "data/prompts.txt":
                require(config, root / made)

    return made_once(tmp_path_factory, "world", make)


@pytest.fixture(scope="session")
def often_equal(world: Path) -> list[str]:
    """Overrides of GRPO on `world` after which the rewards of about every second group are all equal.

    Images of an untrained policy meet half of what a count asks: not too many. Beside 131,072 float32 keeps a CLIP
    score in steps of 1/64.
    """
    prompts = world / "counts.txt"
    shapes = "circles", "squares", "triangles", "crosses"
    lines = [f"{number} {shape}" for number in ("two", "three", "four") for shape in shapes]
    prompts.write_text("\n".join(lines), encoding="utf-8")
    clip = f"{{type: clip, model: 'local-dir:{world / 'clip'}'}}"
    return [f"prompts={prompts}", f"reward.models=[{clip}, {{type: geneval, credit: partial, weight: 262144}}]"]


@pytest.fixture(scope="session")
def detector_config(tmp_path_factory: pytest.TempPathFactory) -> DetectorConfig:
    """GenEval's detector in small: Mask2Former and CLIP with random weights, in the folders that the real ones have."""
    from open_clip import create_model
    from open_clip.factory import add_model_config
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    from simplear_rl.vision.coco_classes import CLASSES

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("detector")
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=10,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder / "mask2former")
    Mask2FormerImageProcessor(size={"height": 384, "width": 384}).save_pretrained(folder / "mask2former")
    (folder / "clip").mkdir()
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    (folder / "tiny.json").write_text(json.dumps(CLIP))
    add_model_config(folder / "tiny.json")
    torch.save(create_model("tiny").state_dict(), folder / "clip" / "open_clip_pytorch_model.bin")
    return DetectorConfig(
        model=folder / "mask2former", clip=f"local-dir:{folder / 'clip'}", clip_weights=None, batch_size=2
    )


@pytest.fixture
def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    shapes = [(48, 48), (48, 48), (48, 48), (48, 64)]
    return [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
