"""The frozen reference policy of the KL term."""

from pathlib import Path

import numpy as np
import torch

from simplear_rl.device import default_device
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Rollout
from simplear_rl.policy.vocabulary import ImageLayout


class ReferencePolicy:
    """Scores rollouts with the computation that the learner uses, on the same shapes.

    So on the same kind of device with equally many threads, its log-probs of the learner's start are the learner's
    own bit for bit, and the KL of the first step is exactly 0.

    Args:
        policy: folder.
        dtype: of its weights.
        micro_batch: images of a pass, see LearnerConfig.
    """

    def __init__(self, policy: Path, dtype: str, micro_batch: int | None = None):
        self.dtype, self.micro_batch = getattr(torch, dtype), micro_batch
        self.folder: Path | None = None
        self.load(policy)

    def load(self, policy: Path) -> None:
        """Be the policy of that folder. A folder's policy never changes, so one that is loaded is not read again."""
        if policy != self.folder:
            self.model = load_policy(policy, self.dtype)[0].to(default_device()).eval()
            self.layout, self.folder = ImageLayout.of(self.model.config), policy

    @torch.no_grad()
    def log_probs(self, rollout: Rollout) -> np.ndarray:
        """Log-probs of the rollout's codes, float32 [G, T]."""
        parts = [rollout.samples(rows) for rows in rollout.rows(self.micro_batch)]
        return np.concatenate([rollout_log_probs(self.model, part, self.layout).cpu().numpy() for part in parts])
