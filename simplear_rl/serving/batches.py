"""The images that an engine draws at a time, with one interface for the engines that serving can use."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from simplear_rl.config.rollout import EngineConfig
from simplear_rl.policy.sampling import Sampling
from simplear_rl.rollout.engine import build_engine
from simplear_rl.rollout.transformers_engine import TransformersEngine
from simplear_rl.weights.receiver import WeightReceiver


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw. As everywhere, the image is a function of this and of the weights."""

    prompt_ids: list[int]
    unconditional_ids: list[int] | None  # the other context of a guided image
    sampling: Sampling
    seed: tuple[int, int, int, int]  # run seed, step, prompt index, sample index

    @property
    def contexts(self) -> list[list[int]]:
        """The prompts of its contexts."""
        return [self.prompt_ids, *([self.unconditional_ids] if self.unconditional_ids else [])]


class RunningBatch(Protocol):
    """The images that an engine draws now. Belongs to one thread."""

    tokens: int  # of an image

    @property
    def engine(self) -> WeightReceiver:
        """What draws, and takes new weights when nothing is drawn."""

    def fits(self, image: ImageRequest) -> bool:
        """Whether it can be drawn from the next step on, beside those that are."""

    def add(self, name: str, image: ImageRequest, stops: Collection[int]) -> None:
        """Draw it from the next step on; `stops`: the numbers of codes at which `step` reports it."""

    def step(self) -> dict[str, np.ndarray]:
        """Draw the next code of every image; by name the codes, uint16 [t], of those at a stop or complete."""

    def remove(self, name: str) -> None:
        """Draw an image no further."""


def build_batch(policy: Path, config: EngineConfig) -> RunningBatch:
    """An empty batch of a new engine. Raises UserError, see `build_engine`."""
    engine = build_engine(policy, config)
    if isinstance(engine, TransformersEngine):
        from simplear_rl.serving.transformers_batch import TransformersBatch

        return TransformersBatch(engine)
    from simplear_rl.rollout.vllm_engine import VllmEngine
    from simplear_rl.serving.vllm_batch import VllmBatch

    assert isinstance(engine, VllmEngine)
    return VllmBatch(engine)
