"""The frozen reference policy of the KL term."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simplear_rl.device import default_device
from simplear_rl.policy.log_probs import rollout_log_probs
from simplear_rl.policy.model import load_policy
from simplear_rl.policy.rollouts import Rollout, passes
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
            model = load_policy(policy, self.dtype)[0].eval()
            if self.folder is None:
                self.model, self.layout = model.to(default_device()), ImageLayout.of(model.config)
            else:
                self.model.load_state_dict(model.state_dict())  # in place: the device has no room for two
            self.folder = policy

    @torch.no_grad()
    def log_probs(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Log-probs of the codes of each rollout, float32 [G, T].

        They go through the policy as `micro_batch` says: in float32 what is together changes the last digits.
        """
        parts = []
        for together in passes(len(rollouts), len(rollouts[0].codes), self.micro_batch):
            drawn = [rollouts[i].samples(rows) for i, rows in together]
            parts.append(rollout_log_probs(self.model, drawn, self.layout).cpu().numpy())
        return list(np.concatenate(parts).reshape(len(rollouts), -1, parts[0].shape[1]))
