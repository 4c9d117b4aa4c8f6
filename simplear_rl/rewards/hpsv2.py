"""HPSv2 as a reward (arXiv 2306.09341): a CLIP ViT-H-14 fine-tuned on human preferences."""

import torch

from simplear_rl.errors import UserError
from simplear_rl.rewards.clip import ClipReward


class HpsV2Reward(ClipReward):
    """The published scorer: cosine of normalised image and text features.

    Args:
        architecture: open_clip name of the network, "ViT-H-14" for the published weights.
        checkpoint: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt.

    Raises:
        UserError: the file has no `state_dict`.
    """

    def __init__(self, architecture: str, checkpoint: str, device: str = "cpu", batch_size: int = 64):
        super().__init__(architecture, None, device, batch_size)
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        if "state_dict" not in saved:
            raise UserError(
                f"{checkpoint}: not an HPSv2 checkpoint: expected the key `state_dict`, found {sorted(saved)}"
            )
        self.model.load_state_dict(saved["state_dict"])
