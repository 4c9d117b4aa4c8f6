"""Trains the miniature world's CLIP, the reward model, on originals and on the tokenizer's reconstructions."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from tqdm import trange

from simplear_rl.policy.model import word_tokenizer
from simplear_rl.shapes.world import SIZE, WORDS, sft_samples
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

IMAGES, BATCH, LEARNING_RATE = 6000, 64, 2e-3
VISION = {"image_size": SIZE, "patch_size": 8, "width": 96, "head_width": 32, "layers": 3}
TEXT = {
    "hf_tokenizer_name": "the words of the world, in this folder",
    "context_length": 12,
    "width": 96,
    "heads": 3,
    "layers": 2,
    "no_causal_mask": True,
    "pool_type": "first",
}
PREPROCESS = {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def train_clip(folder: Path, tokenizer: CosmosTokenizer, seed: int, steps: int) -> None:
    """Write a trained CLIP to `folder`, in open_clip's saved format with its text tokenizer."""
    words = word_tokenizer(WORDS)
    words.save_pretrained(folder)
    model_config = {"embed_dim": 96, "vision_cfg": VISION, "text_cfg": TEXT | {"vocab_size": len(words)}}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_config, "preprocess_cfg": PREPROCESS}), encoding="utf-8"
    )
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")

    captions, originals = sft_samples(IMAGES, seed)
    texts = tokenize(captions)
    decoded = tokenizer.decode(tokenizer.encode(originals), SIZE // tokenizer.patch, SIZE // tokenizer.patch)
    images = torch.from_numpy(np.concatenate([originals, decoded])).permute(0, 3, 1, 2)
    random = np.random.default_rng((seed, 5))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    bar = trange(steps, desc="reward model", unit="step")
    for _ in bar:
        rows = random.integers(len(images), size=BATCH)
        loss = _contrastive_loss(model, images[rows] / 127.5 - 1, texts[rows % len(texts)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.4f}")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def _contrastive_loss(model: torch.nn.Module, pixels: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss; pairs with the same caption count as equally right."""
    image_features, text_features, scale = model(pixels, texts)
    logits = scale * image_features @ text_features.T
    same = (texts[:, None] == texts[None]).all(-1).float()
    target = same / same.sum(-1, keepdim=True)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
