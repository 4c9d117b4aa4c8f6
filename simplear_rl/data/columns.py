"""Names under which samples hold image and captions: columns, keys of JSON objects, or endings of files in a tar."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from simplear_rl.config.data import TokenizeConfig
from simplear_rl.data.images import BadSampleError

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
# The first name wins where it is present: it is the documented one.
IMAGE_NAMES = ("image", *IMAGE_ENDINGS, "img", "image_path", "img_path", "file_name", "filename", "path")
CAPTION_NAMES = ("caption", "text", "prompt", "txt", "captions", "description")


class FormatError(BadSampleError):
    """A sample whose columns are not those expected; the message names the key to set."""


@dataclass(frozen=True)
class Columns:
    """The names that a user chose, None for the known ones, and what is taken from a list of captions."""

    image: str | None = None
    caption: str | None = None
    short_caption: str | None = None
    choice: Literal["first", "random"] | None = None
    seed: int = 0

    @classmethod
    def of(cls, config: TokenizeConfig) -> "Columns":
        """As a configuration says."""
        names = config.image_column, config.caption_column, config.short_caption_column
        return cls(*names, config.caption_choice, config.seed)

    def image_in(self, names: Iterable[str]) -> str | None:
        """The image's column among `names`, None if none is known. Raises FormatError if several are."""
        return _column(names, self.image, IMAGE_NAMES, "image")

    def caption_in(self, names: Iterable[str]) -> str | None:
        """The caption's column among `names`, None if none is known. Raises FormatError if several are."""
        return _column(names, self.caption, CAPTION_NAMES, "caption")

    def short_caption_in(self, names: Iterable[str]) -> str | None:
        """The short caption's column among `names`, None if there is none."""
        return _column(names, self.short_caption, ("short_caption",), "short_caption")

    def used_in(self, names: Iterable[str]) -> tuple[str | None, str | None, str | None]:
        """The columns of image, caption and short caption. Raises FormatError, see above."""
        names = list(names)
        return self.image_in(names), self.caption_in(names), self.short_caption_in(names)

    def chosen(self, value: Any, sample: str) -> Any:
        """A caption as it is, or one of a list; a random choice depends on the seed and the sample's id alone.

        Raises:
            FormatError: a list, and no choice.
        """
        if not isinstance(value, list):
            return value
        if self.choice is None:
            raise FormatError("a list of captions: set caption_choice=first or caption_choice=random")
        if not value:
            return None
        digest = hashlib.sha256(f"{self.seed}:{sample}".encode()).digest()
        return value[0 if self.choice == "first" else int.from_bytes(digest) % len(value)]


KNOWN = Columns()  # the known names alone


def missing(role: str, names: Iterable[str]) -> str:
    """The message that none of the columns is known to hold the image or the caption."""
    return f"no column for the {role} (set {role}_column), found {', '.join(names) or 'none'}"


def _column(names: Iterable[str], wanted: str | None, known: tuple[str, ...], role: str) -> str | None:
    names = list(names)
    if wanted is not None:
        if wanted not in names:
            raise FormatError(f"no {wanted} ({role}_column), found {', '.join(names) or 'nothing'}")
        return wanted
    if known[0] in names:
        return known[0]
    found = [name for name in names if name.lower() in known]
    if len(found) > 1:
        raise FormatError(
            f"{' and '.join(found)} may each be the {role}: choose one, for example {role}_column={found[0]}"
        )
    return found[0] if found else None
