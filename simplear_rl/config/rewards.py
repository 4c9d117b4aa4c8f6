"""The reward models, one class per type, and the actors that score with them.

A new type is a class here, its place in `RewardModelConfig`, and a module in simplear_rl/rewards/.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from simplear_rl.config.base import Count, Location, LocationOrHubId, PoolConfig, Positive, Section, absolute
from simplear_rl.config.benchmarks import GENEVAL2_JUDGE, DetectorConfig, local_clip

HPSV2_REPOSITORY = "xswu/HPSv2"  # on the Hugging Face hub
HPSV2_WEIGHTS = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class AnyRewardConfig(Section):
    """What every reward model has. A sample's reward is the weighted sum over all models."""

    type: str
    weight: float = Field(1.0, description="factor in the sum of all rewards")
    bounds: tuple[float, float] | None = Field(
        None, description="[lowest, highest]: a score beyond counts as the nearest of them; the share is logged"
    )

    @field_validator("bounds")
    @classmethod
    def _bounds_ascend(cls, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"expected [lowest, highest], found {list(bounds)}")
        return bounds

    @property
    def name(self) -> str:
        """How the reward is called in metrics."""
        return self.type

    @property
    def files(self) -> list[Path]:
        """Local folders and files that the reward is read from."""
        return []

    @property
    def skips(self) -> bool:
        """Whether a group with a sample that cannot be scored is left out; else that ends the run."""
        return False


class ImageTextRewardConfig(AnyRewardConfig):
    """A network that compares an image with its prompt."""

    model: str
    weights: str | None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Count = Field(32, description="images, or captions, per forward pass")
    preprocess: Literal["model", "simplear"] = Field(
        "model", description="model: its own transform; simplear: bilinear, as SimpleAR's published training does"
    )
    text_prefix: str = Field(
        "", description="stands before every prompt: 'A photo of ' in SimpleAR's published trainer"
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


class ClipHeadRewardConfig(AnyRewardConfig):
    """A head on a frozen CLIP that has learned human labels, see simplear_rl/reward_model.py."""

    type: Literal["clip_head"] = "clip_head"
    path: Location = Field(description="folder that python -m simplear_rl.reward_model has made")

    @property
    def files(self) -> list[Path]:
        """See AnyRewardConfig."""
        return [self.path]


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


class GenEval2RewardConfig(AnyRewardConfig):
    """GenEval 2's Soft-TIFA as a reward. Its scores then no longer measure independently."""

    type: Literal["geneval2"] = "geneval2"
    questions: Location = Field(description="file like GenEval 2's geneval2_data.jsonl, with every training prompt")
    judge: LocationOrHubId = Field(GENEVAL2_JUDGE, description="vision-language model: folder or Hugging Face id")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of the judge")
    batch_size: Count = Field(16, description="questions per forward pass")
    mean: Literal["geometric", "arithmetic"] = Field(
        "geometric", description="of the probabilities of an image's answers, from 0 to 1"
    )

    @property
    def files(self) -> list[Path]:
        """See AnyRewardConfig."""
        return [self.questions, self.judge]


class UserRewardConfig(AnyRewardConfig):
    """What rewards of the user's have."""

    label: str | None = Field(None, min_length=1, description="its name in metrics; null: the function's, or http")
    on_error: Literal["stop", "skip_group"] = Field(
        "stop", description="a sample that cannot be scored ends the run, or its group is left out and counted"
    )

    @property
    def skips(self) -> bool:
        """See AnyRewardConfig."""
        return self.on_error == "skip_group"


def _function(text: str) -> str:
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(f"expected package.module:name or path/to/file.py:name, found {text!r}")
    return f"{absolute(Path(where))}:{name}" if where.endswith(".py") else text


class PythonRewardConfig(UserRewardConfig):
    """A function or a class of the user's, see simplear_rl/rewards/python.py."""

    type: Literal["python"] = "python"
    function: Annotated[str, AfterValidator(_function)] = Field(
        description="package.module:name or path/to/file.py:name"
    )
    arguments: dict[str, Any] = Field({}, description="by name, for the function, or for the constructor of a class")
    pip: list[str] = Field([], description="packages of an environment of its own, for pins that clash with ours")

    @property
    def name(self) -> str:
        """See AnyRewardConfig."""
        return self.label or self.function.rpartition(":")[2]

    @property
    def files(self) -> list[Path]:
        """See AnyRewardConfig."""
        where = self.function.rpartition(":")[0]
        return [Path(where)] if where.endswith(".py") else []


class HttpRewardConfig(UserRewardConfig):
    """A reward that a server gives, see simplear_rl/rewards/http.py."""

    type: Literal["http"] = "http"
    addresses: Annotated[list[Annotated[str, Field(pattern="^https?://.")]], Field(min_length=1)] = Field(
        description="of equal servers, which are asked in turn: http://host:port/path"
    )
    batch_size: Count = Field(32, description="images per request")
    image_format: Literal["png", "jpeg"] = Field("png", description="in which images are sent; jpeg is smaller, lossy")
    token_variable: str | None = Field(None, description="environment variable that holds a bearer token")
    timeout_seconds: Positive = Field(60, description="until a request has failed")
    retries: Count = Field(12, description="how often a request that failed is sent again before the run ends")
    backoff_seconds: Positive = Field(0.5, description="wait before the second retry; doubles, up to 30 s")

    @property
    def name(self) -> str:
        """See AnyRewardConfig."""
        return self.label or self.type


RewardModelConfig = Annotated[
    ClipRewardConfig
    | HpsV2RewardConfig
    | ClipHeadRewardConfig
    | GenEvalRewardConfig
    | GenEval2RewardConfig
    | PythonRewardConfig
    | HttpRewardConfig,
    Field(discriminator="type"),
]


class RewardConfig(Section):
    """The reward actors: visual tokenizer and reward models."""

    actors: PoolConfig = PoolConfig()
    aggregate: Literal["sum", "gdpo"] = Field(
        "sum",
        description="sum: weighted; gdpo: each reward is normalised in its group, then they are summed "
        "(arXiv 2601.05242), with algorithm.advantage: mean",
    )
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
