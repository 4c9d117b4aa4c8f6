"""Reference actors: log-probs of rollouts under a frozen policy: the one that training started from, or a later one."""

from collections.abc import Sequence
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

    def log_probs(self, rollouts: Sequence[ray.ObjectRef], policy: Path) -> list[np.ndarray]:
        """Of each rollout float32 [G, T] under the policy of that folder, see ReferencePolicy.log_probs."""
        fetched: list[Rollout] = ray.get(list(rollouts))
        with self.phase("log-probs", fetched[0].step, images=sum(len(rollout.codes) for rollout in fetched)):
            self.reference.load(policy)
            return self.reference.log_probs(fetched)
