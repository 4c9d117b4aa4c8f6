"""Scoring images with a reward configuration, to try it before training."""

from pathlib import Path

from pydantic import Field, model_validator

from simplear_rl.config.base import Count, Location, LocationOrHubId, Section
from simplear_rl.config.rewards import RewardConfig


class ScoreConfig(Section):
    """Which images are scored, with which rewards."""

    root: Location = Field(description="folder of what is read, ${root} in other values")
    images: Location | None = Field(None, description="folder with PNG, JPEG or WebP files")
    prompts: Location | None = Field(
        None,
        description="of `images`: .jsonl, .csv, .tsv or .parquet with the columns `file` (below the folder) and "
        "`prompt`; null: a text file of the same name beside each image, or the PNG file's own entry `prompt`",
    )
    codes: Location | None = Field(None, description="folder of token shards, instead of `images`")
    policy: Location | None = Field(None, description="of `codes`: a policy folder, which knows their layout")
    tokenizer: LocationOrHubId | None = Field(None, description="of `codes`: the visual tokenizer that made them")
    limit: Count | None = Field(None, description="only so many images, the first ones")
    batch_size: Count = Field(32, description="images scored together; those of a call have one size")
    reward: RewardConfig
    output: Location = Field(description="folder for scores.csv, index.html and the images of `codes`")

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> "ScoreConfig":
        if bool(self.images) == bool(self.codes):
            raise ValueError("expected either `images` or `codes`")
        if self.codes and not (self.policy and self.tokenizer):
            raise ValueError("`codes` need `policy` and `tokenizer`")
        if self.codes and self.prompts:
            raise ValueError("`prompts` are for `images`; token shards have captions")
        return self

    @property
    def inputs(self) -> list[Path]:
        """What must be there."""
        paths = [self.codes, self.policy, self.tokenizer] if self.codes else [self.images, self.prompts]
        return [path for path in paths if path] + self.reward.files
