"""Pretraining, supervised fine-tuning and GRPO for autoregressive image generators."""

from simplear_rl.torchvision_operators import declare_missing

declare_missing()  # before any module of ours imports transformers, open_clip or vllm: they all import torchvision
