"""Trains the miniature world's visual tokenizer."""

import numpy as np
import torch
from tqdm import trange

from simplear_rl.shapes.world import BACKGROUND, crowded_images
from simplear_rl.tokenizers.fsq import FsqTokenizer

IMAGES, BATCH, LEARNING_RATE = 6000, 32, 3e-3
FOREGROUND_WEIGHT = 3.0  # the shapes cover about a tenth of an image


def train_tokenizer(seed: int, steps: int) -> FsqTokenizer:
    """A tokenizer that has seen `steps` batches of world images; deterministic for a seed and a number of threads."""
    torch.manual_seed(seed)
    random = np.random.default_rng((seed, 4))
    images = torch.from_numpy(crowded_images(IMAGES, seed)).permute(0, 3, 1, 2)
    background = torch.tensor(BACKGROUND).view(3, 1, 1)
    model = FsqTokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    bar = trange(steps, desc="tokenizer", unit="step")
    for _ in bar:
        batch = images[random.integers(len(images), size=BATCH)]
        weight = 1 + FOREGROUND_WEIGHT * (batch != background).any(1, keepdim=True)
        target = batch / 127.5 - 1
        loss = (weight * (model(target) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix_str(f"loss {loss.item():.4f}")
    return model
