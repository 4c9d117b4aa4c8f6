"""Texts before a caption. A policy carries the one that it was made with, for training, drawing and evaluation."""

PROMPT_PREFIXES = {
    "photo": "A photo of ",  # the published GRPO
    "realistic": "A highly realistic image of ",  # the published demo, and one of the 20 of the published training
}
DEFAULT_PREFIX = PROMPT_PREFIXES["realistic"]
