"""Policy weights out of a policy folder. Apart from snapshot.py, since Transformers' models take seconds to import."""

from pathlib import Path

import torch

from simplear_rl.policy.model import load_policy
from simplear_rl.weights.snapshot import Weights, checksum


def read_weights(folder: Path, version: int, dtype: str) -> Weights:
    """The weights of a policy folder. Raises UserError, see `load_policy`."""
    policy = load_policy(folder, getattr(torch, dtype))[0]
    tensors = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    return Weights(version, tensors, checksum(tensors.items()))
