"""The device that a process computes on, chosen here for the whole project."""

import torch


def default_device() -> str:
    """The GPU, if this process sees one (Ray shows an actor those that it reserved), else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
