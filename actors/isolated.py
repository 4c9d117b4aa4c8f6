"""Rewards of the user's in an environment of their own, `pip`, for packages whose pins clash with ours."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray.actor import ActorClass
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.connection import connect
from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.supervision import ACTOR_LOST
from simplear_rl.config.rewards import PythonRewardConfig, RewardModelConfig
from simplear_rl.errors import UserError, causes
from simplear_rl.rewards.reward import Columns, RewardModel, WholeText

RESTARTS = 3


@ray.remote(max_restarts=RESTARTS, max_task_retries=-1, concurrency_groups=CONCURRENCY_GROUPS)
class PythonRewardActor(Monitored):
    """A PythonReward in a process whose packages are its own."""

    def __init__(self, name: str, config: PythonRewardConfig, gpus: str | None):
        super().__init__(name, ("score",))
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # Ray has reserved them for the reward actor
        from simplear_rl.rewards.python import PythonReward

        with self.building():
            self.reward = PythonReward(config)

    def check(self, texts: list[str], columns: Columns) -> list[str]:
        """See PythonReward.check."""
        return self.reward.check(texts, columns)

    def score(self, images: np.ndarray, texts: list[str], columns: Columns) -> np.ndarray | Mapping[str, np.ndarray]:
        """See PythonReward.score."""
        return self.reward.score(images, texts, columns)


class IsolatedReward(WholeText):
    """Asks a PythonRewardActor on this node, which ends with this process.

    Raises:
        UserError: see PythonReward; the environment cannot be made, or the process died more than RESTARTS times.
    """

    def __init__(self, config: PythonRewardConfig, device: str = "cpu"):
        self.about = f"reward {config.name} ({config.function})"
        if not ray.is_initialized():
            connect()
        print(f"{self.about}: Ray makes its environment with {', '.join(config.pip)}", flush=True)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        process: ActorClass = PythonRewardActor
        self.actor = process.options(num_cpus=0, scheduling_strategy=here, runtime_env={"pip": config.pip}).remote(
            f"reward {config.name}", config, os.environ.get("CUDA_VISIBLE_DEVICES")
        )
        self._call("ready")

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """See PythonReward.check."""
        return self._call("check", texts, columns)

    def score(
        self, images: np.ndarray, texts: list[str], columns: Columns = ()
    ) -> np.ndarray | Mapping[str, np.ndarray]:
        """See PythonReward.score."""
        return self._call("score", images, texts, columns)

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return ray.get(getattr(self.actor, method).remote(*args))
        except RayTaskError as error:
            raise list(causes(error))[-1] from error
        except ray.exceptions.RuntimeEnvSetupError as error:
            pip = [line.strip() for line in str(error).splitlines() if line.strip().startswith("ERROR: ")]
            raise UserError(f"{self.about}: its environment cannot be made: {' '.join(pip) or error}") from error
        except ACTOR_LOST as error:
            raise UserError(f"{self.about}: its process, in an environment of its own, is lost: {error}") from error


def build_reward(config: RewardModelConfig, device: str) -> RewardModel:
    """The reward model of a configuration, in this process or in one of its own. Raises UserError."""
    from simplear_rl.rewards import scorer  # it loads open_clip, which the drivers do without

    if isinstance(config, PythonRewardConfig) and config.pip:
        return IsolatedReward(config, device)
    return scorer.build_reward(config, device)
