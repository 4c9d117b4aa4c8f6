"""Pretraining, supervised fine-tuning and GRPO for autoregressive image generators."""

import os

# OpenMP threads that wait spin for a few microseconds, then sleep. By default they spin for milliseconds, which is
# hardly faster alone and many times slower where actors share cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from simplear_rl.torchvision_operators import declare_before_import

declare_before_import()  # transformers, open_clip and vllm all import torchvision
