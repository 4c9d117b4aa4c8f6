"""The device that a process computes on, chosen here for the whole project."""

import os

import torch

from simplear_rl.errors import UserError

RESERVED = "SIMPLEAR_RL_GPUS"  # in the environment of an actor: how many GPUs are reserved for it


def default_device() -> str:
    """The GPU, if this process sees one (Ray shows an actor those that it reserved), else the CPU.

    Raises:
        UserError: GPUs are reserved for this actor, and PyTorch finds none.
    """
    if torch.cuda.is_available():
        return "cuda"
    if reserved := os.environ.get(RESERVED):
        raise UserError(
            f"{reserved} GPUs are reserved for this actor, and PyTorch {torch.__version__} finds none: install "
            "requirements-gpu.lock (docs/cluster.md), or set `gpus` of its section to 0"
        )
    return "cpu"
