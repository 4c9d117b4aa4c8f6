"""Token shards: what pretraining and SFT read, and what `tokenize` writes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from simplear_rl.config.base import (
    ActorsConfig,
    CommandConfig,
    Count,
    Fraction,
    Location,
    LocationOrHubId,
    NonNegative,
    Positive,
    Section,
)


class TokenSourceConfig(Section):
    """One folder of token shards, and its share of what is trained on."""

    shards: Location = Field(
        description="folder of Parquet files with columns `caption`, `codes`, `short_caption`, `weight`; of pairs "
        "`caption`, `chosen`, `rejected`"
    )
    weight: Positive = Field(1.0, description="share of the images, relative to the other sources' weights")
    factor: NonNegative = Field(
        1.0, description="pretraining and SFT: of the loss of its images, beside the column `weight` of each"
    )


class ValidationConfig(Section):
    """The loss on token shards that are held out from training, with whole captions."""

    sources: Annotated[dict[Annotated[str, Field(pattern="^[a-z0-9_]+$")], Location], Field(min_length=1)] = Field(
        description="folders of token shards by name: {name: folder}; `validation_loss_NAME` is the loss on one"
    )
    every: Count = Field(description="steps between validations; the last step always has one")
    images: Count = Field(256, description="of each source, always the same ones; all, if it has fewer")

    @property
    def names(self) -> list[str]:
        """The metrics that it adds."""
        return ["validation_loss", *(f"validation_loss_{name}" for name in self.sources), "validation_seconds"]


class ShardDataConfig(Section):
    """What is read from token shards, and in which order."""

    sources: Annotated[list[TokenSourceConfig], Field(min_length=1)]
    batch_size: Count = Field(description="images per step, over all learner ranks")
    drop_caption: Fraction = Field(0.1, description="share of captions replaced by the null prompt (for guidance)")
    max_prompt_tokens: Count = Field(512, description="longest prompt, special tokens included")
    long_caption: Literal["refuse", "truncate"] = Field("refuse", description="what happens to a longer one")
    shuffle_rows: Count = Field(65_536, description="images of a source that are in memory and shuffled at a time")

    @property
    def folders(self) -> list[Path]:
        """Where the shards are."""
        return [source.shards for source in self.sources]


class TokenDataConfig(ShardDataConfig):
    """Token shards for pretraining and SFT."""

    micro_batch: Count = Field(description="images per forward pass of one rank")
    short_caption: Fraction = Field(0.5, description="share of short captions, where an image has one")
    validation: ValidationConfig | None = Field(None, description="the loss on held-out shards, while it trains")

    @property
    def folders(self) -> list[Path]:
        """Where the shards are, those that are held out included."""
        return [*super().folders, *(self.validation.sources.values() if self.validation else ())]

    @model_validator(mode="after")
    def _validation_is_held_out(self) -> "TokenDataConfig":
        trained = {source.shards for source in self.sources}
        if self.validation and (both := [str(f) for f in self.validation.sources.values() if f in trained]):
            raise ValueError(f"validation.sources: these are trained on, so they are not held out: {', '.join(both)}")
        return self


class PairDataConfig(ShardDataConfig):
    """Token shards with pairs of images for DPO."""

    batch_size: Count = Field(description="pairs per step, over all learner ranks")
    drop_caption: Fraction = Field(0.0, description="share of captions replaced by the null prompt")
    guidance_scale: Positive = Field(
        1.0, description="log-probs are those of the guided distribution, with this scale; 1 is unguided"
    )

    @model_validator(mode="after")
    def _losses_have_no_factor(self) -> "PairDataConfig":
        if scaled := [str(source.shards) for source in self.sources if source.factor != 1]:
            raise ValueError(
                f"sources: {', '.join(scaled)}: DPO has no `factor` of the loss; `weight` sets how often pairs are read"
            )
        return self


class TokenizeConfig(CommandConfig):
    """Token shards from images and captions."""

    input: LocationOrHubId = Field(
        description="folder, file or Hugging Face data set: JSON lines or arrays, WebDataset tars, Parquet, or images "
        "with texts of the same name"
    )
    files: str = Field("**/*", description="glob pattern that chooses among the files below `input`")
    image_column: str | None = Field(
        None, description="column, JSON key or ending of the image; by default image, jpg, file_name, image_path, ..."
    )
    caption_column: str | None = Field(
        None, description="column, JSON key or ending of the caption; by default caption, text, prompt, txt, ..."
    )
    short_caption_column: str | None = Field(
        None, description="column, JSON key or ending of the short caption; by default short_caption"
    )
    caption_choice: Literal["first", "random"] | None = Field(
        None, description="which one of a list of captions is used, at random by `seed`; null: such a list is refused"
    )
    image_folder: Location | None = Field(
        None, description="where the paths of images begin; null: the folder of the file that names them"
    )
    pairs: Literal["drop_ties", "keep_ties"] | None = Field(
        None,
        description="pairs of images for DPO instead of single ones, see docs/preferences.md; ties are left out, or "
        "kept in an order drawn by `seed`",
    )
    output: Location = Field(description="folder for the shards and rejected.jsonl")
    size: Count = Field(description="pixels per side of the square that an image is resized and cropped to")
    min_size: Count | None = Field(
        None, description="pixels of the shorter side below which an image is rejected; null: size, 1: all are enlarged"
    )
    batch_size: Count = Field(32, description="images that the tokenizer encodes at a time")
    shard_size: Count = Field(1000, description="samples of a shard, bad ones included; a tar always makes one shard")
    max_rejected: Fraction = Field(1.0, description="share of bad samples above which the command fails")
    actors: ActorsConfig = ActorsConfig()

    @model_validator(mode="after")
    def _output_is_no_input(self) -> "TokenizeConfig":
        if self.output.resolve().is_relative_to(self.input.resolve()):
            raise ValueError(f"output ({self.output}) must not be inside input: its shards would become input")
        return self

    @model_validator(mode="after")
    def _pairs_have_known_columns(self) -> "TokenizeConfig":
        chosen = [key for key in ("image_column", "short_caption_column") if getattr(self, key)]
        if self.pairs and chosen:
            raise ValueError(f"{chosen[0]} is for single images: leave it out, or pairs")
        return self
