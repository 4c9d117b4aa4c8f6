"""The samples of a step in its run folder: all rewards, and small images of the first groups."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from simplear_rl.files import write_text

SIDE = 128  # pixels of a small image


@dataclass(frozen=True)
class StepSamples:
    """What a step has left of its samples."""

    step: int
    prompts: list[str]
    rewards: list[list[float]]  # of each prompt's samples; NaN: left out
    shown: int  # of how many prompts, the first ones, there are images
    sheet: Path  # their small images, a row for each prompt

    def with_images(self) -> list[tuple[int, int, float]]:
        """Row, column and reward of every small image that has a reward."""
        rows = enumerate(self.rewards[: self.shown])
        return [(r, c, reward) for r, row in rows for c, reward in enumerate(row) if math.isfinite(reward)]

    def image(self, row: int, column: int) -> Image.Image:
        """A small image. Raises OSError if it is not there, or damaged."""
        with Image.open(self.sheet) as sheet:
            side = sheet.height // self.shown
            return sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))


def save_samples(
    file: Path, prompts: Sequence[str], rewards: Sequence[np.ndarray], images: Sequence[np.ndarray]
) -> None:
    """Write `file`.json with prompts and rewards (float [G] each), and `file`.webp with the images of the first groups.

    Args:
        file: samples/step-N, without an ending.
        prompts: of all groups.
        rewards: of all groups.
        images: of the first groups, square, uint8 [G, H, H, 3] each.

    Raises:
        UserError: the storage refuses them.
        OSError: likewise.
    """
    side = min(SIDE, images[0].shape[1])
    sheet = Image.new("RGB", (side * len(images[0]), side * len(images)))
    for r, group in enumerate(images):
        for c, image in enumerate(group):
            sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS), (c * side, r * side))
    sheet.save(file.with_suffix(".webp"), quality=90)
    values = [[float(f"{reward:.7g}") for reward in group] for group in rewards]
    write_text(
        file.with_suffix(".json"), json.dumps({"prompts": list(prompts), "rewards": values, "shown": len(images)})
    )


def read_samples(file: Path) -> StepSamples:
    """What `save_samples` has written. Raises ValueError or OSError if it is not there, or damaged."""
    found = json.loads(file.read_text(encoding="utf-8"))
    try:
        rewards = [[float(reward) for reward in group] for group in found["rewards"]]
        prompts, shown = [str(prompt) for prompt in found["prompts"]], int(found["shown"])
        if len(prompts) != len(rewards) or not all(rewards) or not 0 < shown <= len(prompts):
            raise ValueError(f"{len(prompts)} prompts, {len(rewards)} groups, {shown} with images")
    except (KeyError, TypeError) as error:
        raise ValueError(f"no samples of a step: {error!r}") from error
    return StepSamples(int(file.stem.removeprefix("step-")), prompts, rewards, shown, file.with_suffix(".webp"))
