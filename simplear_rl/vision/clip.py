"""Loads CLIP models of open_clip. Rewards and detectors both use them."""

import pickle

import open_clip
from safetensors import SafetensorError

LOAD_ERRORS = (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError)
PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def load_clip(
    model: str, weights: str | None, dtype: str, device: str
) -> tuple[open_clip.CLIP, open_clip.transform.Compose]:
    """A CLIP ready to compute, and its own transform of images.

    Args:
        model: open_clip name, hf-hub:NAME or local-dir:FOLDER.
        weights: open_clip tag or file; None where the model brings its own. Never random.
        dtype: of the weights: "float32", "bfloat16" or "float16".
        device: where it computes.

    Raises one of LOAD_ERRORS.
    """
    clip, transform = open_clip.create_model_from_pretrained(model, weights, precision=PRECISION[dtype], device=device)
    return clip.eval(), transform
