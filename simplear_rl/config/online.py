"""What the parts of stages that draw images while they train must agree on."""

from typing import Literal

from simplear_rl.config.learner import LearnerConfig
from simplear_rl.config.rewards import GenEvalRewardConfig, RewardConfig
from simplear_rl.config.rollout import EngineConfig, RolloutConfig


def require_geneval_metadata(world: Literal["shapes"] | None, reward: RewardConfig) -> None:
    """Raise ValueError if a GenEval reward does not know what images must show."""
    if world != "shapes" and any(
        isinstance(model, GenEvalRewardConfig) and not model.metadata for model in reward.models
    ):
        raise ValueError("a geneval reward needs `metadata`, except in the miniature world (world: shapes)")


def require_same_dtype(learner: LearnerConfig, engine: EngineConfig, key: str) -> None:
    """Raise ValueError if the engines, of the configuration's `key`, cannot hold the learner's weights."""
    if learner.dtype != engine.dtype:
        raise ValueError(
            f"{key}.dtype ({engine.dtype}) must be learner.dtype ({learner.dtype}): "
            "engines hold the learner's weights bit for bit"
        )


def require_weights_fit(learner: LearnerConfig, rollout: RolloutConfig) -> None:
    """Raise ValueError if the engines cannot hold or receive the learner's weights."""
    engine = rollout.engine
    require_same_dtype(learner, engine, "rollout.engine")
    gpus = learner.actors.gpus, engine.actors.gpus
    if rollout.broadcast == "collective" and any(gpus) and not all(n and n == int(n) for n in gpus):
        raise ValueError(
            "rollout.broadcast=collective: NCCL needs a GPU of its own in every learner and engine, found "
            f"learner.actors.gpus {gpus[0]:g}, rollout.engine.actors.gpus {gpus[1]:g}: "
            "reserve whole ones for both, or set rollout.broadcast=object_store"
        )
    if rollout.broadcast == "ipc":
        if learner.actors.count != engine.actors.count:
            raise ValueError(
                "rollout.broadcast=ipc: every learner shares its device with one engine, found "
                f"learner.actors.count {learner.actors.count}, rollout.engine.actors.count {engine.actors.count}: "
                "set both to the same, or rollout.broadcast=object_store"
            )
        if (engine.actors.max_count or 0) > engine.actors.count:
            raise ValueError(
                "rollout.broadcast=ipc: an engine that joins later has no learner to share memory with, found "
                f"rollout.engine.actors.max_count {engine.actors.max_count}: leave it out, or set "
                "rollout.broadcast=object_store"
            )
        if any(gpus) and (not all(gpus) or sum(gpus) > 1):
            raise ValueError(
                "rollout.broadcast=ipc: a learner and an engine share a GPU, found "
                f"learner.actors.gpus {gpus[0]:g}, rollout.engine.actors.gpus {gpus[1]:g}: "
                "reserve fractions that sum to 1, or set rollout.broadcast=object_store"
            )
