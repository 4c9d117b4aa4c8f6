"""What an engine does with weights that are sent to it, over any transport: load, settle, verify."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from simplear_rl.weights.group import WeightGroup
from simplear_rl.weights.sharing import mapped, wait_for_device
from simplear_rl.weights.snapshot import Weights


class WeightReceiver(ABC):
    """Base of the engines that training can use. `version` is that of the weights that they hold."""

    version = 0  # those of the policy folder

    @abstractmethod
    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> object:
        """Copy tensors, under their Transformers names, over the engine's own. Raises RuntimeError while it draws."""

    @abstractmethod
    def _settle(self) -> None:
        """Bring what depends on the weights up to date, once all of them are loaded."""

    @abstractmethod
    def checksum(self) -> dict[str, str]:
        """Checksum of the weights in the engine, comparable with the learner's."""

    def load_weights(self, weights: Weights) -> None:
        """Replace the weights and verify the checksum of what the engine then holds.

        Raises:
            RuntimeError: images are still being drawn, or the checksum differs from the sender's.
        """
        self._load(weights.tensors.items())
        self.accept_weights(weights.version, weights.checksum)

    def receive_weights(self, group: WeightGroup) -> None:
        """The same with what the first rank of `group` sends, a bucket at a time."""
        version, sent = group.receive(self._load)
        self.accept_weights(version, sent)

    def map_weights(self, handles: bytes) -> None:
        """Copy one bucket out of another process's memory; `accept_weights` follows the last one."""
        self._load(mapped(handles).items())
        wait_for_device()

    def accept_weights(self, version: int, sent: dict[str, str]) -> None:
        """Settle, and verify what has been loaded by the sender's checksum. Raises RuntimeError."""
        self._settle()
        held = self.checksum()
        if held != sent:
            first = next(name for name in sorted(held | sent) if held.get(name) != sent.get(name))
            raise RuntimeError(
                f"weights of version {version}: {first} differs: sent {sent.get(first)}, engine holds {held.get(first)}"
            )
        self.version = version
