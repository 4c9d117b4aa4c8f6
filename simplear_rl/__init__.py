"""Pretraining, supervised fine-tuning and GRPO for autoregressive image generators."""

import os

# OpenMP threads that wait spin for a few microseconds, then sleep. By default they spin for milliseconds, which is
# hardly faster alone and many times slower where actors share cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from simplear_rl.torchvision_operators import declare_missing

declare_missing()  # before any module of ours imports transformers, open_clip or vllm: they all import torchvision
