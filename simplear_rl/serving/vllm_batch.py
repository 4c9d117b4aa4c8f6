"""Continuous batching on vLLM: an image joins the running ones at any step."""

import numpy as np
from vllm.sampling_params import RequestOutputKind

from simplear_rl.rollout.vllm_engine import VllmEngine
from simplear_rl.serving.batches import ImageRequest


class VllmBatch:
    """Implements RunningBatch. Images leave and join at every step; they may have different `Sampling`."""

    def __init__(self, engine: VllmEngine):
        self.engine, self.scheduler, self.tokens = engine, engine.scheduler, engine.layout.tokens
        self.images: dict[str, tuple[ImageRequest, list[int]]] = {}  # with the codes of those that are followed

    def fits(self, image: ImageRequest) -> bool:
        """See RunningBatch."""
        contexts = [ids for other, _ in self.images.values() for ids in other.contexts] + image.contexts
        blocks = sum(self.scheduler.blocks(len(ids), self.tokens) for ids in contexts)
        return len(contexts) <= self.scheduler.max_num_running_reqs and blocks <= self.scheduler.capacity

    def add(self, name: str, image: ImageRequest, follow: bool) -> None:
        """See RunningBatch."""
        self.images[name] = image, []
        kind = RequestOutputKind.DELTA if follow else RequestOutputKind.FINAL_ONLY
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
                codes = self.images[output.request_id][1]
                codes.extend(output.outputs[0].token_ids)
                progress[output.request_id] = np.array(codes) - self.engine.layout.visual_offset
                if output.finished:
                    del self.images[output.request_id]
        return progress

    def remove(self, name: str) -> None:
        """See RunningBatch."""
        if self.images.pop(name, None):
            self.engine.abort_images([name])
