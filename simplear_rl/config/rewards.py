"""The reward models, one class per type, and the actors that score with them.

A new type is a class here, its place in `RewardModelConfig`, and a module in simplear_rl/rewards/.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from simplear_rl.config.base import Count, Location, PoolConfig, Section
from simplear_rl.config.benchmarks import DetectorConfig, local_clip

HPSV2_REPOSITORY = "xswu/HPSv2"  # on the Hugging Face hub
HPSV2_WEIGHTS = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class AnyRewardConfig(Section):
    """What every reward model has. A sample's reward is the weighted sum over all models."""

    type: str
    weight: float = Field(1.0, description="factor in the sum of all rewards")

    @property
    def name(self) -> str:
        """How the reward is called in metrics."""
        return self.type

    @property
    def files(self) -> list[Path]:
        """Local folders and files that the reward is read from."""
        return []


class ImageTextRewardConfig(AnyRewardConfig):
    """A network that compares an image with its prompt."""

    model: str
    weights: str | None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Count = Field(32, description="images, or captions, per forward pass")
    preprocess: Literal["model", "simplear"] = Field(
        "model", description="model: its own transform; simplear: bilinear, as SimpleAR's published training does"
    )
    long_text: Literal["refuse", "truncate"] = Field(
        "refuse", description="prompts beyond the model's context (77 tokens): an error, or their beginning is scored"
    )

    @field_validator("weights")
    @classmethod
    def _file_is_absolute(cls, weights: str | None) -> str | None:
        file = os.path.expanduser(weights or "")
        return os.path.abspath(file) if os.path.isfile(file) else weights

    @property
    def files(self) -> list[Path]:
        """See AnyRewardConfig."""
        return local_clip(self.model)


class ClipRewardConfig(ImageTextRewardConfig):
    """CLIP."""

    type: Literal["clip"] = "clip"
    model: str = Field(min_length=1, description="open_clip name, hf-hub:NAME or local-dir:FOLDER")
    weights: str | None = Field(None, description="open_clip tag or file; null with hf-hub: and local-dir:")

    @model_validator(mode="after")
    def _weights_are_known(self) -> "ClipRewardConfig":
        if bool(self.weights) == self.model.startswith(("local-dir:", "hf-hub:")):
            raise ValueError(
                f"clip reward {self.model}: an open_clip name needs `weights`, local-dir: and hf-hub: bring their own; "
                f"found weights {self.weights}"
            )
        return self

    @property
    def name(self) -> str:
        """See AnyRewardConfig."""
        return f"clip_{Path(self.model).name}"


class HpsV2RewardConfig(ImageTextRewardConfig):
    """HPSv2: a CLIP fine-tuned on human preferences."""

    type: Literal["hpsv2"] = "hpsv2"
    model: str = Field(min_length=1, description="its network: ViT-H-14 as published")
    weights: str = Field(min_length=1, description="v2.0 or v2.1, from the Hugging Face hub, or a file")

    @property
    def files(self) -> list[Path]:
        """See AnyRewardConfig."""
        return super().files + ([] if self.weights in HPSV2_WEIGHTS else [Path(self.weights)])


class GenEvalRewardConfig(AnyRewardConfig):
    """GenEval's own rules as a reward. Its scores then no longer measure independently."""

    type: Literal["geneval"] = "geneval"
    metadata: Location | None = Field(
        None,
        description="file like GenEval's evaluation_metadata.jsonl, with every training prompt; null: the miniature "
        "world's captions and its exact detector",
    )
    detector: DetectorConfig | None = Field(None, description="with metadata; null: GenEval's own")
    credit: Literal["correct", "partial"] = Field(
        "correct", description="1 or 0, as the benchmark says, or the share of requirements that are met"
    )

    @model_validator(mode="after")
    def _detector_has_metadata(self) -> "GenEvalRewardConfig":
        if self.detector and not self.metadata:
            raise ValueError("geneval: `detector` is for `metadata`; the miniature world has one of its own")
        return self

    @property
    def files(self) -> list[Path]:
        """See AnyRewardConfig."""
        return [self.metadata, *(self.detector or DetectorConfig()).files] if self.metadata else []


RewardModelConfig = Annotated[ClipRewardConfig | HpsV2RewardConfig | GenEvalRewardConfig, Field(discriminator="type")]


class RewardConfig(Section):
    """The reward actors: visual tokenizer and reward models."""

    actors: PoolConfig = PoolConfig()
    models: Annotated[list[RewardModelConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> "RewardConfig":
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"two reward models are called the same in metrics: {', '.join(names)}")
        return self

    @property
    def files(self) -> list[Path]:
        """Local folders and files that the rewards are read from."""
        return [file for model in self.models for file in model.files]
