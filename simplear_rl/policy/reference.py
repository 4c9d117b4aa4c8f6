"""The frozen reference policy of the KL term."""

from pathlib import Path

import numpy as np
import torch

from simplear_rl.policy.log_probs import visual_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.vocabulary import ImageLayout
from simplear_rl.rollout.types import Rollout


class ReferencePolicy:
    """Scores rollouts with the computation that the learner uses, on the same shapes.

    So on the same kind of device with equally many threads, its log-probs of the learner's start are the learner's
    own bit for bit, and the KL of the first step is exactly 0.
    """

    def __init__(self, policy: Path, dtype: str, temperature: float):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_policy(policy, getattr(torch, dtype))[0].to(self.device).eval()
        self.layout = ImageLayout.of(self.model.config)
        self.temperature = temperature

    @torch.no_grad()
    def log_probs(self, rollout: Rollout) -> np.ndarray:
        """Log-probs of the rollout's codes, float32 [G, T]."""
        codes_GT = torch.from_numpy(rollout.codes.astype(np.int64)).to(self.device)
        log_probs_GT = visual_log_probs(self.model, rollout.prompt_ids, codes_GT, self.layout, self.temperature)
        return log_probs_GT.cpu().numpy()
