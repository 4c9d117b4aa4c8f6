"""The reward models, and the actors that score with them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from simplear_rl.config.base import Count, Location, PoolConfig, Section
from simplear_rl.config.benchmarks import DetectorConfig

# Published on the Hugging Face hub in xswu/HPSv2.
HPSV2_WEIGHTS = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class RewardModelConfig(Section):
    """One reward model; a sample's reward is the weighted sum over all of them."""

    type: Literal["clip", "hpsv2", "geneval"]
    model: str = Field(
        "",
        description="clip: open_clip name, hf-hub:NAME or local-dir:FOLDER; hpsv2: its network, ViT-H-14 as published",
    )
    weights: str | None = Field(
        None, description="clip: open_clip tag or file; hpsv2: v2.0, v2.1 (from the Hugging Face hub) or file"
    )
    weight: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Count = Field(32, description="images, or captions, per forward pass")
    preprocess: Literal["model", "simplear"] = Field(
        "model", description="model: its own transform; simplear: bilinear, as SimpleAR's published training does"
    )
    long_text: Literal["refuse", "truncate"] = Field(
        "refuse", description="prompts beyond the model's context (77 tokens): an error, or their beginning is scored"
    )
    metadata: Location | None = Field(
        None,
        description="geneval: file like GenEval's evaluation_metadata.jsonl, with every training prompt; null: the "
        "miniature world's captions and its exact detector",
    )
    detector: DetectorConfig | None = Field(None, description="geneval with metadata; null: GenEval's own")
    credit: Literal["correct", "partial"] = Field(
        "correct", description="geneval: 1 or 0, as the benchmark says, or the share of requirements that are met"
    )

    @field_validator("weights")
    @classmethod
    def _file_is_absolute(cls, weights: str | None) -> str | None:
        file = Path(weights or "").expanduser()
        return str(file.absolute()) if file.is_file() else weights

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> "RewardModelConfig":
        of_a_network = ("model", "weights", "dtype", "batch_size", "preprocess", "long_text")
        for key in of_a_network if self.type == "geneval" else ("metadata", "detector", "credit"):
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"a {self.type} reward has no `{key}`, found {value}")
        if self.detector and not self.metadata:
            raise ValueError("geneval: `detector` is for `metadata`; the miniature world has one of its own")
        return self

    @model_validator(mode="after")
    def _weights_are_known(self) -> "RewardModelConfig":
        if self.type == "geneval":
            return self
        if not self.model:
            raise ValueError(f"a {self.type} reward needs `model`")
        if self.type == "hpsv2" and not self.weights:
            raise ValueError("an hpsv2 reward needs `weights`: v2.0, v2.1 or a file")
        if self.type == "clip" and bool(self.weights) == self.model.startswith(("local-dir:", "hf-hub:")):
            raise ValueError(
                f"clip reward {self.model}: an open_clip name needs `weights`, local-dir: and hf-hub: bring their own; "
                f"found weights {self.weights}"
            )
        return self

    @property
    def name(self) -> str:
        """How the reward is called in metrics."""
        return f"{self.type}_{Path(self.model).name}" if self.type == "clip" else self.type


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
        return self.networks + [model.metadata for model in self.models if model.metadata]

    @property
    def networks(self) -> list[Path]:
        """Those of CLIP and HPSv2 models."""
        local = [Path(m.model.removeprefix("local-dir:")) for m in self.models if m.model.startswith("local-dir:")]
        weights = [m.weights for m in self.models if m.type == "hpsv2" and m.weights]
        return local + [Path(file) for file in weights if file not in HPSV2_WEIGHTS]
