"""Labelling pairs of images by hand."""

from typing import Annotated

from pydantic import Field

from simplear_rl.config.base import Location
from simplear_rl.config.generate import GenerateConfig


class LabelConfig(GenerateConfig):
    """Which pairs are drawn, from which policy, and where their page is."""

    images_per_prompt: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        2, description="consecutive images of a prompt are pairs"
    )
    output: Location = Field(description="folder for labels.jsonl and the images")
    port: Annotated[int, Field(ge=0, lt=65536)] = Field(8790, description="of the page, on this machine; 0: a free one")
