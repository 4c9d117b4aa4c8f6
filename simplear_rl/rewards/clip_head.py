"""A reward learned from human labels: a small head on the features of a frozen CLIP (Lee et al., arXiv 2302.12192)."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from simplear_rl.config.rewards import ClipHeadRewardConfig, ClipRewardConfig
from simplear_rl.errors import UserError
from simplear_rl.files import write_text
from simplear_rl.rewards.clip import ClipReward

WEIGHTS, ABOUT = "head.safetensors", "reward.json"


class Head(nn.Module):
    """Reward [...] of image and text features [..., D] each: an MLP of both and of their product."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.sizes = {"features": features, "hidden": hidden}
        self.layers = nn.Sequential(nn.Linear(3 * features, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """See above. The features have length 1; their product is scaled to what the others are."""
        scale = image.shape[-1] ** 0.5
        return self.layers(torch.cat([image, text, scale * image * text], dim=-1)).squeeze(-1)


def save_reward(folder: Path, head: Head, clip: ClipRewardConfig, measured: dict[str, float]) -> None:
    """Write what `ClipHeadReward` reads. ABOUT comes last: without it the folder is no reward model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    save_file({name: tensor.cpu() for name, tensor in head.state_dict().items()}, folder / WEIGHTS)
    about = {"clip": clip.model_dump(mode="json"), "head": head.sizes, "measured": measured}
    write_text(folder / ABOUT, json.dumps(about, indent=1))


class ClipHeadReward(ClipReward):
    """The reward of a folder that `python -m simplear_rl.reward_model` has made.

    Raises:
        UserError: the folder is not such a one; see ClipReward.
    """

    def __init__(self, config: ClipHeadRewardConfig, device: str = "cpu"):
        try:
            about = json.loads((config.path / ABOUT).read_text(encoding="utf-8"))
            clip, self.head = ClipRewardConfig(**about["clip"]), Head(**about["head"])
            self.head.load_state_dict(load_file(config.path / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{config.path}: not a reward model of simplear_rl.reward_model: {error}") from error
        super().__init__(clip, device)
        self.name = config.name
        self.head.to(device).eval()

    @torch.no_grad()
    def score_features(self, features_BD: torch.Tensor, texts: list[str]) -> np.ndarray:
        """See ClipReward: what the head says, about 0 (bad) to 1 (good)."""
        return self.head(features_BD, self.text_features(texts)).cpu().numpy()
