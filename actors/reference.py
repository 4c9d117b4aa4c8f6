"""Reference actors: log-probs of rollouts under a frozen policy: the one that training started from, or a later one."""

from pathlib import Path

import numpy as np
import ray

from actors.monitor import CONCURRENCY_GROUPS, Monitored
from simplear_rl.policy.rollouts import Rollout


@ray.remote(max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class ReferenceActor(Monitored):
    """A ReferencePolicy in an actor of its own. Restarts freely: each call says which policy it means."""

    def __init__(self, name: str, index: int, policy: Path, dtype: str, micro_batch: int | None):
        super().__init__(name, ("log-probs",))
        from simplear_rl.policy.reference import ReferencePolicy

        with self.building():
            self.reference = ReferencePolicy(policy, dtype, micro_batch)

    def log_probs(self, rollout: Rollout, policy: Path) -> np.ndarray:
        """float32 [G, T] under the policy of that folder, see ReferencePolicy.log_probs."""
        with self.phase("log-probs", rollout.step, images=len(rollout.codes)):
            self.reference.load(policy)
            return self.reference.log_probs(rollout)
