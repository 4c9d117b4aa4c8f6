"""HPSv2 as a reward (arXiv 2306.09341): a CLIP ViT-H-14 fine-tuned on human preferences.

The published score is the cosine of image and text features, as CLIP's; weights and preprocessing are its own.
"""

import open_clip
import torch
from huggingface_hub import hf_hub_download

from simplear_rl.config.rewards import HPSV2_REPOSITORY, HPSV2_WEIGHTS
from simplear_rl.errors import UserError
from simplear_rl.rewards.clip import ClipReward
from simplear_rl.vision.clip import PRECISION


class HpsV2Reward(ClipReward):
    """The published scorer. `weights: v2.0` or `v2.1` is fetched once into the Hugging Face cache; else it is a file.

    Raises:
        UserError: see ClipReward; the weights cannot be fetched, or their file has no `state_dict`.
    """

    def _load(self) -> open_clip.CLIP:
        weights = self.config.weights
        assert weights, "HpsV2RewardConfig asks for them"
        if weights in HPSV2_WEIGHTS:
            weights = _fetch(weights)
        saved = torch.load(weights, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or "state_dict" not in saved:
            found = sorted(saved) if isinstance(saved, dict) else type(saved).__name__
            raise UserError(f"not an HPSv2 checkpoint: expected the key `state_dict`, found {found}")
        model = open_clip.create_model(
            self.config.model, load_weights=False, precision=PRECISION[self.config.dtype], device=self.device
        )
        model.load_state_dict(saved["state_dict"])
        return model


def _fetch(version: str) -> str:
    """File of a published version, from the Hugging Face cache or hub."""
    try:
        return hf_hub_download(HPSV2_REPOSITORY, HPSV2_WEIGHTS[version])
    except OSError as error:
        raise UserError(
            f"{HPSV2_WEIGHTS[version]} is not in the Hugging Face cache and cannot be fetched from {HPSV2_REPOSITORY}; "
            f"the path of the file may stand as `weights` instead: {error}"
        ) from error
