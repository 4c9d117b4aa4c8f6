"""Continuous batching on vLLM: an image joins the running ones at any step."""

from collections.abc import Collection

import numpy as np
from vllm.sampling_params import RequestOutputKind

from simplear_rl.rollout.vllm_engine import VllmEngine
from simplear_rl.serving.batches import ImageRequest


class VllmBatch:
    """Implements RunningBatch. Images leave and join at every step; they may have different `Sampling`."""

    def __init__(self, engine: VllmEngine):
        self.engine, self.scheduler, self.tokens = engine, engine.scheduler, engine.layout.tokens
        self.images: dict[str, tuple[ImageRequest, Collection[int], list[int]]] = {}  # with stops and codes

    def fits(self, image: ImageRequest) -> bool:
        """See RunningBatch."""
        contexts = [ids for other, *_ in self.images.values() for ids in other.contexts] + image.contexts
        blocks = sum(self.scheduler.blocks(len(ids), self.tokens) for ids in contexts)
        return len(contexts) <= self.scheduler.max_num_running_reqs and blocks <= self.scheduler.capacity

    def add(self, name: str, image: ImageRequest, stops: Collection[int]) -> None:
        """See RunningBatch."""
        self.images[name] = image, stops, []
        kind = RequestOutputKind.DELTA if stops else RequestOutputKind.FINAL_ONLY
        extra = {"seed": list(image.seed), "sampling": image.sampling}
        # Keys and values from the prefix cache are rounded otherwise: an image would depend on those before it.
        self.engine.add_image(
            name, image.prompt_ids, image.unconditional_ids, extra, output_kind=kind, skip_reading_prefix_cache=True
        )

    def step(self) -> dict[str, np.ndarray]:
        """See RunningBatch."""
        progress = {}
        for output in self.engine.llm.llm_engine.step():
            if output.request_id in self.images:
                _, stops, ids = self.images[output.request_id]
                ids.extend(output.outputs[0].token_ids)
                if output.finished or len(ids) in stops:
                    progress[output.request_id] = (np.array(ids) - self.engine.layout.visual_offset).astype(np.uint16)
                if output.finished:
                    del self.images[output.request_id]
        return progress

    def remove(self, name: str) -> None:
        """See RunningBatch."""
        if self.images.pop(name, None):
            self.engine.abort_images([name])
