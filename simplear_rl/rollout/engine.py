"""The engines that draw images, by the names that `engine.type` and --engine choose from."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.device import default_device
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw, Rollout


class Engine(Protocol):
    """What draws images; see VllmEngine."""

    def generate(self, draw: Draw) -> Iterator[Rollout]:
        """Draw images; yield each prompt's group, in order, as soon as it is complete."""


def build_engine(policy: Path, config: EngineConfig) -> Engine:
    """The engine of `config.type`, with the weights of the folder `policy`.

    Raises:
        UserError: vLLM is not installed; `batch_invariant` without a GPU; the folder is no policy; see the engines.
    """
    if config.type != "vllm":
        from simplear_rl.rollout.transformers_engine import TransformersEngine  # vLLM does without its imports

        return TransformersEngine(policy, config)
    if config.batch_invariant:
        if default_device() != "cuda":
            raise UserError("engine.batch_invariant: vLLM has such kernels for GPUs alone; leave it out")
        os.environ["VLLM_BATCH_INVARIANT"] = "1"  # read when vLLM is imported
    try:
        from simplear_rl.rollout.vllm_engine import VllmEngine
    except ImportError as error:
        raise UserError(f"engine vllm: vLLM is not installed ({error}); the engine transformers needs none") from error
    return VllmEngine(policy, config)
