"""A process group of the learner's first rank and all rollout engines, over which weights are broadcast.

NCCL between GPUs, gloo between CPUs; nothing else differs, so that what a machine without a GPU tests is what GPUs run.
vLLM's own weight transfer (`WeightTransferConfig`) is not used: its transports are NCCL, CUDA IPC and RDMA, its trainer
gives the same rank to the worker of every independent engine, and it calls CUDA streams throughout, so that none of it
runs without a GPU.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from simplear_rl.device import default_device
from simplear_rl.errors import PeerLostError
from simplear_rl.weights.snapshot import checksum

TIMEOUT = timedelta(minutes=10)


def meeting_place(host: str) -> distributed.TCPStore:
    """A store where the ranks of a group meet, `tcp://host:port`, in the process of rank 0 at `host`.

    The system chooses the port, and the store holds it from here on: no other process can take it before the ranks
    come. Keep the store until the group is formed.
    """
    return distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)


class WeightGroup:
    """One member. The constructor returns once all members have joined.

    Args:
        rendezvous: `tcp://host:port` of a `meeting_place` in the process of rank 0, or of a free port there.
        rank: 0 sends, the others receive.
        size: number of members.
        timeout: of joining, and of each operation.

    After an error in any method the members no longer agree on what comes next: each has to `leave`, and all of them
    must form a new group.
    """

    def __init__(self, rendezvous: str, rank: int, size: int, timeout: timedelta = TIMEOUT):
        host, _, port = rendezvous.removeprefix("tcp://").rpartition(":")
        store = distributed.TCPStore(host, int(port), size, rank == 0, timeout, multi_tenant=True)
        self.device, self.timeout = default_device(), timeout
        members = distributed.PrefixStore("members", store)
        self.group: Any
        if self.device == "cuda":
            options = distributed.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self.group = distributed.ProcessGroupNCCL(members, rank, size, options)
        else:
            self.group = distributed.ProcessGroupGloo(members, rank, size, timeout)
        # What the tensors are is said through the store, their bytes go through the group.
        self.notes = distributed.PrefixStore("notes", store)
        self.first_note = self.next_note = 0

    def send(self, buckets: Iterable[dict[str, torch.Tensor]], version: int) -> None:
        """Rank 0: broadcast the tensors of all `buckets`, then the version and their checksum."""
        for old in range(self.first_note, self.next_note):  # everybody has read those of the last time
            self.notes.delete_key(str(old))
        self.first_note = self.next_note
        sums: dict[str, str] = {}
        for bucket in buckets:
            self._write({"tensors": {n: [list(t.shape), str(t.dtype).split(".")[1]] for n, t in bucket.items()}})
            self._broadcast(tensor.contiguous() for tensor in bucket.values())
            sums |= checksum(bucket.items())
        self._write({"version": version, "checksum": sums})

    def receive(self, load: Callable[[Iterable[tuple[str, torch.Tensor]]], object]) -> tuple[int, dict[str, str]]:
        """The other ranks: hand each bucket to `load`; returns version and checksum of what was sent."""
        while "tensors" in (note := self._read()):
            bucket = {
                name: torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
                for name, (shape, dtype) in note["tensors"].items()
            }
            self._broadcast(bucket.values())
            load(bucket.items())
        return note["version"], note["checksum"]

    def leave(self) -> None:
        """Close the connections: the others see it at once. Gloo closes them when nothing refers to its group."""
        self.group = None

    def _broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        options = distributed.BroadcastOptions()
        options.rootRank = 0
        with _peers():
            works = deque(self.group.broadcast([tensor.flatten().view(torch.uint8)], options) for tensor in tensors)
            try:
                while works:
                    works.popleft().wait(self.timeout)
            finally:
                works.clear()  # they hold the connections, and a traceback would hold them

    def _write(self, note: dict) -> None:
        with _peers():
            self.notes.set(str(self.next_note), json.dumps(note))
        self.next_note += 1

    def _read(self) -> dict:
        with _peers():
            note = json.loads(self.notes.get(str(self.next_note)))
        self.next_note += 1
        return note


@contextmanager
def _peers() -> Iterator[None]:
    """Around what needs the other members: PyTorch has no error of its own for one that is gone."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(f"weight broadcast: {error}") from error
