"""Batches one after the other on Transformers: all images of a batch write to the same column of the cache."""

from collections.abc import Collection

import numpy as np
import torch

from simplear_rl.rollout.decoding import Batch
from simplear_rl.rollout.transformers_engine import TransformersEngine
from simplear_rl.serving.batches import ImageRequest


class TransformersBatch:
    """Implements RunningBatch. Nothing joins a batch that has begun, and its images have one `Sampling`."""

    def __init__(self, engine: TransformersEngine):
        self.engine, self.tokens = engine, engine.layout.tokens
        self.images: dict[str, tuple[ImageRequest, Collection[int]]] = {}  # rows of the batch, once it has begun
        self.gone: set[str] = set()
        self.running: Batch | None = None
        self.drawn = 0

    def fits(self, image: ImageRequest) -> bool:
        """See RunningBatch."""
        contexts = (len(self.images) + 1) * len(image.contexts)
        alike = all(other.sampling == image.sampling for other, _ in self.images.values())
        return self.running is None and alike and contexts <= self.engine.config.max_concurrent

    def add(self, name: str, image: ImageRequest, stops: Collection[int]) -> None:
        """See RunningBatch."""
        self.images[name] = image, stops

    @torch.no_grad()
    def step(self) -> dict[str, np.ndarray]:
        """See RunningBatch."""
        if self.running is None:
            images = [image for image, _ in self.images.values()]
            others = [image.unconditional_ids for image in images if image.unconditional_ids]
            seeds = [image.seed for image in images]
            prompts = [image.prompt_ids for image in images]
            self.running = self.engine.decoder.begin(prompts, others or None, seeds, images[0].sampling)
            self.drawn = 1
        else:
            self.running.next()
            self.drawn += 1
        whole = self.drawn == self.tokens
        progress = {
            name: self.running.codes_BT[row, : self.drawn].cpu().numpy().astype(np.uint16)
            for row, (name, (_, stops)) in enumerate(self.images.items())
            if name not in self.gone and (whole or self.drawn in stops)
        }
        if whole:
            self._clear()
        return progress

    def remove(self, name: str) -> None:
        """See RunningBatch; the others of the batch go on, as long as there are any."""
        if self.running is None:
            self.images.pop(name, None)
        elif name in self.images:
            self.gone.add(name)
            if len(self.gone) == len(self.images):
                self._clear()

    def _clear(self) -> None:
        self.images.clear()
        self.gone.clear()
        self.running = None
