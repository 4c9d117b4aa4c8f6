"""What all parts of the schema are made of: sections, paths, numbers, actors, and what every command has."""

import errno
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from simplear_rl.characters import bad_characters, tidy_prompt
from simplear_rl.files import is_hub_id

CONFIGS = Path(__file__).parents[1] / "configs"  # in a checkout a link to the folder beside the package

ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*:/")  # of s3://bucket/folder, as a Path has it


def absolute(path: Path) -> Path:
    """Absolute, since actors have working directories of their own."""
    if bad_characters(str(path)):
        raise ValueError(f"control characters in the path {str(path)!r}")
    if ADDRESS.match(str(path)) and not os.path.lexists(path):
        raise ValueError(f"{str(path).replace(':/', '://', 1)}: an address; expected a path: mount it, or copy it here")
    try:
        path = path.expanduser().absolute()
        os.lstat(path)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    except OSError as error:  # most mean that it is not there yet
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"a path too long for any file: {str(path)[:60]}...") from None
    return path


def countable(number: int) -> int:
    """The number. Raises ValueError if nothing can be counted so far."""
    if number >= 2**31:
        raise ValueError(f"expected a number less than {2**31}")
    return number


Location = Annotated[Path, AfterValidator(absolute)]
LocationOrHubId = Annotated[Path, AfterValidator(lambda path: path if is_hub_id(path) else absolute(path))]
PromptText = Annotated[str, AfterValidator(tidy_prompt)]
Count = Annotated[int, Field(ge=1), AfterValidator(countable)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ActorsConfig(Section):
    """How many actors of a role, and what each one occupies."""

    count: Count = 1
    cpus: Positive = Field(1.0, description="CPUs that Ray reserves for each actor; fractions share a core")
    gpus: NonNegative = Field(0.0, description="GPUs that Ray reserves for each actor")
    threads: Count = Field(
        default_factory=lambda values: max(1, int(values.get("cpus", 1))),
        description="threads of each actor's CPU kernels; default: as many as whole CPUs",
    )


class PoolConfig(ActorsConfig):
    """Actors each of which can do any piece of the work, so that more may join while a run goes on."""

    max_count: Count | None = Field(
        None,
        description="beyond the `count` actors that a run needs, up to so many work whenever the cluster has room; "
        "nodes with them may join and leave",
    )

    @model_validator(mode="after")
    def _at_least_count(self) -> "PoolConfig":
        if self.max_count is not None and self.max_count < self.count:
            raise ValueError(f"max_count ({self.max_count}) must be at least count ({self.count})")
        return self


class GuidanceConfig(Section):
    """Guidance of what is drawn for people and for benchmarks."""

    guidance_scale: NonNegative = Field(1.0, description="1 is unguided")
    negative_prompt: PromptText | None = Field(
        None, description="caption of the unconditional context; null: training's null prompt"
    )
    negative_prefix: bool = Field(
        True, description="the policy's prefix stands before the negative prompt; false: as in SimpleAR's demo"
    )

    @model_validator(mode="after")
    def _negative_prompt_has_effect(self) -> "GuidanceConfig":
        if self.negative_prompt and self.guidance_scale == 1:
            raise ValueError("negative_prompt: has no effect without guidance; set guidance_scale")
        return self


class FaultsConfig(Section):
    """What happens when actors die or hang."""

    max_restarts: Count = Field(
        3,
        description="how often an actor of a pool is restarted, and how often in a row, without a new checkpoint, "
        "a stage that lost its learner starts again from the last one",
    )
    heartbeat_seconds: Positive = Field(
        60, description="an actor that gives no sign of life for so long, not even from an idle thread, is killed"
    )


TokenizerIdentity = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]


class CommandConfig(Section):
    """What every command has."""

    seed: Annotated[int, Field(ge=0)] = 0
    root: Location = Field(description="folder of what is read and written, ${root} in other values")
    world: Literal["shapes"] | None = Field(
        None, description="embedded world that makes what a command needs and does not find below root"
    )
    tokenizer: LocationOrHubId = Field(
        description="visual tokenizer: folder with encoder.jit and decoder.jit, or Hugging Face id"
    )
    accept_tokenizer: TokenizerIdentity | None = Field(
        None, description="identity of another visual tokenizer, whose shards and policies are taken for `tokenizer`'s"
    )
    faults: FaultsConfig = FaultsConfig()
