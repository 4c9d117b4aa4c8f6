"""GenEval's metadata file: one prompt a line, with what its images must hold. It does not come with this package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from simplear_rl.benchmarks.benchmark import read_text
from simplear_rl.benchmarks.geneval import TAGS
from simplear_rl.config.base import PromptText
from simplear_rl.errors import UserError
from simplear_rl.files import parse_json
from simplear_rl.vision.coco_classes import CLASSES, COLOURS

PUBLISHED = "https://github.com/djghosh13/geneval (prompts/evaluation_metadata.jsonl)"


def read_metadata(file: Path) -> list[dict]:
    """The entries of GenEval's metadata file, one a line.

    Raises:
        UserError: see `read_entries`; a tag without a prompt.
    """
    entries = read_entries(file)
    if missing := [tag for tag in TAGS if tag not in {entry["tag"] for entry in entries}]:
        raise UserError(f"{file}: no prompts of {', '.join(missing)}: the overall score is the mean over all six tags")
    return entries


def read_entries(file: Path) -> list[dict]:
    """The entries of a file in the form of GenEval's metadata, of any tags.

    Raises:
        UserError: unreadable or empty file, or lines that are no entries (all of them, with number, key and what stands
            there).
    """
    entries, bad = [], []
    text = read_text(file, PUBLISHED)
    if not text.strip():
        raise UserError(f"{file}: empty, expected a line for each prompt")
    # Not splitlines(): JSON text may hold other line separators.
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        try:
            entry = _Entry.model_validate_json(line)
            parse_json(line)  # Pydantic takes the last of two equal keys
            # A null, as tables write it, requires nothing: the rules ask whether a key is there.
            entries.append(entry.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True))
        except ValidationError as error:
            bad += [f"{file}, line {number}: {_explain(problem)}" for problem in error.errors()]
        except ValueError as error:
            bad.append(f"{file}, line {number}: {error}")
    if bad:
        raise UserError("\n".join(bad))
    return entries


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Excluded(_Line):
    name: str = Field(alias="class")
    count: int = Field(ge=1)

    @field_validator("name")
    @classmethod
    def _is_a_class(cls, name: str) -> str:
        return _one_of(CLASSES, name)


class _Included(_Excluded):
    color: str | None = None
    position: tuple[Literal["left of", "right of", "above", "below"], Annotated[int, Field(ge=0)]] | None = None

    @field_validator("color")
    @classmethod
    def _is_a_colour(cls, name: str | None) -> str | None:
        return name and _one_of(COLOURS, name)


class _Entry(_Line):
    tag: str
    include: list[_Included] = Field(min_length=1)
    exclude: list[_Excluded] = []
    prompt: Annotated[PromptText, Field(min_length=1)]  # tidied as prompts files are, else it is not found by it

    @field_validator("tag")
    @classmethod
    def _is_a_tag(cls, name: str) -> str:
        return _one_of(TAGS, name)

    @model_validator(mode="after")
    def _targets_come_first(self) -> "_Entry":
        for i, required in enumerate(self.include):
            if required.position and required.position[1] >= i:
                raise ValueError(f"include.{i}.position: expected an earlier requirement, found {required.position[1]}")
        return self


def _one_of(names: Sequence[str], name: str) -> str:
    if name not in names:
        raise ValueError(f"expected one of {', '.join(names)}")
    return name


def _explain(problem: ErrorDetails) -> str:
    key = ".".join(map(str, problem["loc"]))
    return f"{key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}, found {problem['input']!r}"
