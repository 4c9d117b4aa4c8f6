from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from simplear_rl.config.base import Count, Fraction, Location, Section
from simplear_rl.config.keys import describe_keys, known_keys
from simplear_rl.config.stages import GrpoConfig


class Round(Section):
    """A circle.

    More of it.
    """

    type: Literal["round"]
    radius: float = Field(gt=0, description="in pixels")


class Square(Section):
    """A square."""

    type: Literal["square"]
    side: Annotated[int, Field(ge=8, multiple_of=8)] = 16


Shape = Annotated[Round | Square, Field(discriminator="type")]


class Frame(Section):
    """What is around."""

    width: Count = 1
    inner: Square | None = None


class Drawing(Section):
    """All of it."""

    file: Location
    title: str | None = Field(None, description="a text that is so long that it does not fit into a line of the help")
    words: list[str] = Field([])
    range: tuple[Fraction, Fraction] = (0.0, 0.5)
    mode: Literal["fast", "exact", 3] = "fast"
    empty: str = ""
    more: dict[str, Any] = Field({})
    shapes: Annotated[list[Shape], Field(min_length=1)]
    shape: Shape | None = Field(None, description="another one")
    frame: Frame = Frame(width=7)


HELP = """\
  All of it.
    file   path (required)
    title  text or null (null)  a text that is so long that it does not fit
           into a line of the help
    words  [text, ...] ([])
    range  [number >= 0 and <= 1, number >= 0 and <= 1] ([0.0, 0.5])
    mode   fast | exact | 3 (fast)
    empty  text ("")
    more   mapping ({})

  shapes (type: round)  [section, ...] at least 1 (required)  A circle.
    shapes.type    round (required)
    shapes.radius  number > 0 (required)  in pixels

  shapes (type: square)  [section, ...] at least 1 (required)  A square.
    shapes.type  square (required)
    shapes.side  integer >= 8 and multiple of 8 (16)

  shape (type: round)  section or null (null)  A circle.
    another one
    shape.type    round (required)
    shape.radius  number > 0 (required)  in pixels

  shape (type: square)  section or null (null)  A square.
    another one
    shape.type  square (required)
    shape.side  integer >= 8 and multiple of 8 (16)

  frame  section  What is around.
    frame.width  integer >= 1 (7)

  frame.inner  section or null (null)  A square.
    frame.inner.type  square (required)
    frame.inner.side  integer >= 8 and multiple of 8 (16)"""


def test_keys_are_described_by_section():
    assert describe_keys(Drawing, 75) == HELP


def test_known_keys_reach_into_lists_and_unions():
    found = known_keys(Drawing)
    assert len(set(found)) == len(found)
    inner = {"shapes.type", "shapes.radius", "shapes.side", "shape.radius", "frame.inner.side"}
    assert set(found) == set(Drawing.model_fields) | inner | {
        "shape.type",
        "shape.side",
        "frame.width",
        "frame.inner",
        "frame.inner.type",
    }


@pytest.mark.parametrize("width", [60, 100])
def test_lines_are_as_wide_as_asked(width):
    lines = describe_keys(GrpoConfig, width).split("\n")
    assert [line for line in lines if len(line) > width and len(line.split()) > 1] == []
    named = {line.split()[0] for line in lines if line.strip()}
    assert set(known_keys(GrpoConfig)) <= named
