"""Training a reward model on human labels."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from simplear_rl.config.base import Count, Fraction, Location, NonNegative, Positive, Section
from simplear_rl.config.rewards import ClipRewardConfig


class HeadTrainingConfig(Section):
    """A small head on frozen CLIP features."""

    root: Location = Field(description="folder of what is read, ${root} in other values")
    seed: Annotated[int, Field(ge=0)] = 0
    images: Location = Field(description="folder of the labelled images")
    labels: Location = Field(
        description=".jsonl, .csv, .tsv or .parquet with the columns `file` (below the folder), `prompt` and `good` "
        "(1 or 0), or labels.jsonl of `python -m simplear_rl.label`"
    )
    clip: ClipRewardConfig = Field(description="whose features of image and prompt the head reads")
    hidden: Count = Field(256, description="width of the head's hidden layer")
    wrong_prompts: Count = Field(4, description="that an image's own prompt is told from; the paper's N - 1")
    classification: NonNegative = Field(0.5, description="weight of that in the loss; the paper's lambda")
    validation: Fraction = Field(0.1, description="share of the images that the head is only measured on")
    steps: Count = 1000
    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    output: Location = Field(description="folder of the reward model: reward.models=[{type: clip_head, path: FOLDER}]")

    @property
    def inputs(self) -> list[Path]:
        """What must be there."""
        return [self.images, self.labels, *self.clip.files]
