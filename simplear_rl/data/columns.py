"""Names under which samples hold image and captions: columns, keys of JSON objects, or endings of files in a tar."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simplear_rl.config.data import TokenizeConfig
from simplear_rl.data.images import BadSampleError
from simplear_rl.data.pair_forms import RANKED, TIE, RawPair, pair_form

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
# The first name wins where it is present: it is the documented one.
IMAGE_NAMES = ("image", *IMAGE_ENDINGS, "img", "image_path", "img_path", "file_name", "filename", "path")
CAPTION_NAMES = ("caption", "text", "prompt", "txt", "captions", "description")
SHORT_NAMES = ("short_caption",)


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
    pairs: Literal["drop_ties", "keep_ties"] | None = None
    image_folder: Path | None = None  # where paths of images begin; None: where the file is that names them

    @classmethod
    def of(cls, config: TokenizeConfig) -> "Columns":
        """As a configuration says."""
        names = config.image_column, config.caption_column, config.short_caption_column
        return cls(*names, config.caption_choice, config.seed, config.pairs, config.image_folder)

    def image_in(self, names: Iterable[str]) -> str | None:
        """The image's column among `names`, None if none is known. Raises FormatError if several are.

        Of pairs the columns of both images.
        """
        if self.pairs:
            return "images of a ranking" if set(names) >= set(RANKED) else str(pair_form(names) or "") or None
        return _column(names, self.image, IMAGE_NAMES, "image")

    def caption_in(self, names: Iterable[str]) -> str | None:
        """The caption's column among `names`, None if none is known. Raises FormatError if several are."""
        if self.pairs and self.caption is None and "prompt" in names:
            return "prompt"  # beside it a `caption` may be what a model made of it
        return _column(names, self.caption, CAPTION_NAMES, "caption")

    def short_caption_in(self, names: Iterable[str]) -> str | None:
        """The short caption's column among `names`, None if there is none: a row may lack the chosen one too."""
        if self.short_caption is not None:
            return self.short_caption if self.short_caption in names else None
        return _column(names, None, SHORT_NAMES, "short_caption")

    def used_in(self, names: Iterable[str]) -> tuple[str | None, str | None, str | None]:
        """The columns of image, caption and short caption. Raises FormatError, see above."""
        names = list(names)
        return self.image_in(names), self.caption_in(names), self.short_caption_in(names)

    def used_in_table(self, names: Iterable[str]) -> tuple[str | None, str | None, str | None]:
        """The same of a table, which must have the chosen short caption as well."""
        names = list(names)
        image, caption, _ = self.used_in(names)
        return image, caption, _column(names, self.short_caption, SHORT_NAMES, "short_caption")

    def ordered(self, pair: RawPair, sample: str) -> tuple[Any, Any]:
        """The better image of a pair and the other one; the order of a tie depends on the seed and the sample alone.

        Raises:
            BadSampleError: a tie, and ties are left out.
        """
        if not pair.preference and self.pairs == "drop_ties":
            raise BadSampleError(TIE)
        first = pair.preference > 0 or (not pair.preference and self._draw(sample) % 2 == 0)
        return (pair.first, pair.second) if first else (pair.second, pair.first)

    def _draw(self, sample: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{sample}".encode()).digest())

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
        return value[0 if self.choice == "first" else self._draw(sample) % len(value)]


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
