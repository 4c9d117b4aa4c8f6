"""Pretraining, supervised fine-tuning, DPO and GRPO for autoregressive image generators."""

import os
import pwd

# OpenMP threads that wait spin for a few microseconds, then sleep. By default they spin for milliseconds, which is
# hardly faster alone and many times slower where actors share cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Telemetry is off unless the user turns it on. Actors import this package too, and the processes of a new Ray cluster
# inherit the driver's environment.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

# In a container a user may have a number and no name. PyTorch names a cache after the user and fails without a name.
try:
    pwd.getpwuid(os.getuid())
except KeyError:
    os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")

from simplear_rl.torchvision_operators import declare_before_import

declare_before_import()  # transformers, open_clip and vllm all import torchvision
