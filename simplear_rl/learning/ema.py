"""An exponential moving average of the weights (Polyak and Juditsky 1992), float32 in host memory."""

from collections.abc import Iterable, Mapping

import torch


class Ema:
    """The average; of the first weights it sees, these. After a step: decay * average + (1 - decay) * weights."""

    def __init__(self, decay: float, buckets: Iterable[Mapping[str, torch.Tensor]]):
        self.decay = decay
        self.weights = {name: _on_host(tensor).clone() for bucket in buckets for name, tensor in bucket.items()}

    def update(self, buckets: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Take in the weights after a step."""
        for bucket in buckets:
            for name, tensor in bucket.items():
                self.weights[name].lerp_(_on_host(tensor), 1 - self.decay)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32)
