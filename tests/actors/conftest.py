"""A GRPO run that the tests of this folder share: guided, with two rewards, scored after each of its two steps."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simplear_rl import grpo
from simplear_rl.config.base import CONFIGS
from simplear_rl.config.load import load_config
from simplear_rl.config.stages import GrpoConfig
from tests.conftest import made_once


@pytest.fixture(scope="session")
def grpo_config(world, tmp_path_factory):
    """A function of a run's folder and of overrides."""
    clip = f"local-dir:{world / 'clip'}"
    weights = load_file(world / "clip" / "open_clip_model.safetensors")
    hpsv2 = tmp_path_factory.mktemp("rewards") / "hps.pt"
    torch.save({"state_dict": {name: value + 0.01 for name, value in weights.items()}}, hpsv2)
    second = f"{{type: hpsv2, model: '{clip}', weights: {hpsv2}, weight: 0.5}}"

    def grpo_config(run: Path, *overrides: str) -> GrpoConfig:
        roles = ("learner.actors", "rollout.engine.actors", "reward.actors", "reference")
        tiny = [
            "steps=2",
            "checkpoint_every=1",
            "samples_every=2",
            "rollout.prompts_per_step=4",
            "rollout.samples_per_prompt=3",
            "rollout.guidance_scale=2.5",
            f"reward.models=[{{type: clip, model: '{clip}'}}, {second}]",
            "evaluation.every=1",
            "evaluation.prompt_count=6",
            "evaluation.images_per_prompt=2",
            "wandb=false",
            f"root={world}",
            f"run={run}",
            f"start={world / 'policy'}",
            *(f"{role}.threads=1" for role in roles),
        ]
        return load_config(GrpoConfig, CONFIGS / "shapes" / "grpo.yaml", [*tiny, *overrides])

    return grpo_config


@pytest.fixture(scope="session")
def one_of_each(ray_cluster, grpo_config, tmp_path_factory):
    """The folder of the run, with one actor of each role."""
    return made_once(tmp_path_factory, "one_of_each", lambda run: grpo.train(grpo_config(run)))
