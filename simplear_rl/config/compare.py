"""Comparing two policies, or what was drawn with them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from simplear_rl.config.base import Count, Location, LocationOrHubId, NonNegative, Section
from simplear_rl.config.rewards import RewardConfig
from simplear_rl.config.rollout import EngineType


class CompareConfig(Section):
    """What is compared: policies, evaluations (`evaluate --output`) or images with their prompts (`generate`)."""

    root: Location = Field(description="folder of what is read, ${root} in other values")
    a: Location = Field(description="policy folder, folder of an evaluation, or folder of images with their prompts")
    b: Location = Field(description="what is compared with it, of the same kind")
    prompts: str | None = Field(None, description="of policies: a prompt, or a file of prompts, see `generate`")
    tokenizer: LocationOrHubId = Field(description="of policies: visual tokenizer, folder or Hugging Face id")
    engine: EngineType = Field("vllm", description="of policies: what draws")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of policies: the same for both")
    images_per_prompt: Count = Field(1, description="of policies")
    guidance_scale: NonNegative = Field(1.0, description="of policies; 1 is unguided")
    temperature: NonNegative = Field(1.0, description="of policies; 0 is greedy")
    batch_size: Count = Field(16, description="images drawn, or scored, together")
    reward: RewardConfig = Field(description="scores the images; evaluations bring their own scores")
    output: Location = Field(description="folder for pairs.csv, index.html and the images that are drawn")

    @property
    def sides(self) -> dict[str, Path]:
        """What is compared, by name."""
        return {"a": self.a, "b": self.b}
