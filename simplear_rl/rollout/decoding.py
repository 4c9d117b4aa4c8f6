"""Whole images from a DecodeStep: draw, step, draw. On CUDA a step and the draw behind it are one CUDA graph."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from simplear_rl.policy.guidance import guided_logits
from simplear_rl.policy.sampling import Sampling, draw_each, uniform_stream
from simplear_rl.rollout.decode_step import DecodeStep

GRAPHS = 4  # kept for batches to come: a run has full batches, a last smaller one, and the same of its evaluation


class Decoder:
    """Draws batches of images. Row b consumes the uniform stream of `seeds[b]`, as in every engine."""

    def __init__(self, step: DecodeStep):
        self.step = step
        self.batches: dict[tuple[int, int, Sampling], Batch] = {}

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        unconditional: list[list[int]] | None,
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes int64 [B, T] and their log-probs float32 [B, T] of one image per prompt, see `begin`."""
        batch = self.begin(prompts, unconditional, seeds, sampling)
        for _ in range(self.step.layout.tokens - 1):
            batch.next()
        # Copies: the next batch overwrites the buffers.
        return batch.codes_BT.cpu().numpy().copy(), batch.log_probs_BT.cpu().numpy().copy()

    @torch.no_grad()
    def begin(
        self,
        prompts: list[list[int]],
        unconditional: list[list[int]] | None,
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> "Batch":
        """A batch of one image per prompt, of which the first codes are drawn.

        Args:
            prompts: prompt ids, of any lengths.
            unconditional: the other context of every prompt, with guidance.
            seeds: one per prompt.
            sampling: what is drawn from.
        """
        contexts = [*prompts, *(unconditional or [])]
        if len(contexts) > self.step.room:
            self.batches.clear()  # and with them, their graphs' memory
            self.step.reserve(len(contexts))
        key = len(prompts), len(contexts), sampling
        if key not in self.batches:
            if len(self.batches) == GRAPHS:
                self.batches.clear()
            self.batches[key] = Batch(self.step, *key)
        self.batches[key].begin(contexts, seeds)
        return self.batches[key]


class Batch:
    """Batches of one size and one sampling: their buffers and, on CUDA, their graph.

    `next` draws the next code of each image. `codes_BT` has those that are drawn, `position` says how many they are.
    """

    def __init__(self, step: DecodeStep, images: int, contexts: int, sampling: Sampling):
        self.step, self.images, self.contexts, self.sampling = step, images, contexts, sampling
        tokens, device = step.layout.tokens, step.ids.device
        self.uniforms_BT = torch.zeros(images, tokens, dtype=torch.float64, device=device)
        self.codes_BT = torch.zeros(images, tokens, dtype=torch.long, device=device)
        self.log_probs_BT = torch.zeros(images, tokens, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.next: Callable[[], None] = self._next
        if device.type == "cuda":
            self.next = self._captured()

    def begin(self, contexts: list[list[int]], seeds: Sequence[Sequence[int]]) -> None:
        """Draw the first codes of other images; see Decoder."""
        tokens = self.step.layout.tokens
        self.uniforms_BT.copy_(torch.from_numpy(np.stack([uniform_stream(seed, tokens) for seed in seeds])))
        self.position.zero_()
        self._draw(self.step.begin(contexts))

    def _next(self) -> None:
        self._draw(self.step(self.contexts))

    def _draw(self, logits_KC: torch.Tensor) -> None:
        """Draw each image's code at `position`, and give it to all of its contexts."""
        if self.contexts > self.images:
            conditional_BC, unconditional_BC = logits_KC.chunk(2)
            logits_KC = guided_logits(conditional_BC, unconditional_BC, self.sampling.guidance_scale)
        uniform_B = self.uniforms_BT.index_select(1, self.position).squeeze(1)
        codes_B, log_probs_B = draw_each(logits_KC, uniform_B, self.sampling)
        self.codes_BT.index_copy_(1, self.position, codes_B.unsqueeze(1))
        self.log_probs_BT.index_copy_(1, self.position, log_probs_B.unsqueeze(1))
        ids_B = codes_B + self.step.layout.visual_offset
        self.step.ids[: self.contexts] = ids_B.repeat(self.contexts // self.images)
        self.position += 1

    def _captured(self) -> Callable[[], None]:
        """`_next` as a graph: compiled and warmed up first, on columns that `begin` overwrites."""
        self.step.column.zero_()
        self.step.first.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._next()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._next()
        return graph.replay
