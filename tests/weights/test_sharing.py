"""Handles to a bucket, opened by a process that is no relative of this one."""

import subprocess
import sys
from pathlib import Path

import torch

from simplear_rl.weights.sharing import shared
from simplear_rl.weights.snapshot import checksum

READER = """
import sys
from simplear_rl.weights.sharing import mapped
from simplear_rl.weights.snapshot import checksum

tensors = mapped(sys.stdin.buffer.read())
print(checksum(tensors.items()))
tensors["bias"].zero_()
del tensors
"""


def test_another_process_maps_the_same_memory_and_leaves_nothing_behind():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 300, generator=generator)
    bucket = {"rows": weights[1:3], "half": weights.T.bfloat16(), "bias": torch.ones(5)}
    before = set(Path("/dev/shm").glob("torch_*"))
    copies, handles = shared(bucket)
    assert len(handles) < 2000  # no bytes of the weights
    reader = subprocess.run([sys.executable, "-c", READER], input=handles, stdout=subprocess.PIPE, check=True)
    assert reader.stdout.decode().strip().endswith(str(checksum(bucket.items())))
    assert copies["bias"].count_nonzero() == 0  # the reader had the memory itself
    assert bucket["bias"].count_nonzero() == 5  # and of the copy
    del copies
    assert set(Path("/dev/shm").glob("torch_*")) <= before
