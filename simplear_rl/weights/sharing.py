"""Weights that a learner shows to an engine on the same device: only handles to memory change hands.

PyTorch's own means: CUDA IPC between the processes of a GPU, POSIX shared memory on a CPU, with the same code, so that
what a machine without a GPU tests is what GPUs run. vLLM's own transfer over CUDA IPC runs on GPUs alone.
"""

import pickle
from multiprocessing.reduction import ForkingPickler

import torch
from torch import multiprocessing  # teaches ForkingPickler tensors

from simplear_rl.device import default_device


def shared(bucket: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bytes]:
    """Copies of the tensors in memory that another process may map, and the handles to it.

    The copies must live until the other process has said that it is done. We share copies for two reasons: sharing a
    tensor exposes its whole allocation, and on a CPU a tensor that was shared stays in shared memory.
    """
    multiprocessing.set_sharing_strategy("file_system")  # descriptors of the other strategy reach child processes only
    copies = {name: tensor.clone() for name, tensor in bucket.items()}
    return copies, bytes(ForkingPickler.dumps(copies))


def mapped(handles: bytes) -> dict[str, torch.Tensor]:
    """The tensors behind the handles. The caller drops them, and waits for the device, before it says that it is done.

    A caller that is killed before that leaves the memory of this bucket allocated: on a GPU until the other process
    ends, on a CPU in /dev/shm.
    """
    return pickle.loads(handles)


def wait_for_device() -> None:
    """Return when everything asked of the device so far is done."""
    if default_device() == "cuda":
        torch.cuda.synchronize()
