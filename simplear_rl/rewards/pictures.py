"""Images with prompts, from files or from token shards, for rewards to be tried on."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from simplear_rl.config.score import ScoreConfig
from simplear_rl.data.columns import IMAGE_ENDINGS
from simplear_rl.data.images import BadSampleError, decode
from simplear_rl.data.order import Piece
from simplear_rl.data.prompts import check_prompt, read_rows
from simplear_rl.data.shards import TokenShards
from simplear_rl.device import default_device
from simplear_rl.errors import UserError, first_of
from simplear_rl.files import CONTACT_SHEET
from simplear_rl.policy.vocabulary import read_layout
from simplear_rl.tokenizers.cosmos import CosmosTokenizer

FILE = "file"


@dataclass(frozen=True)
class Source:
    """An image file and its prompt."""

    file: Path
    prompt: str
    columns: dict[str, Any]

    def pixels(self) -> np.ndarray:
        """See `read_pixels`."""
        return read_pixels(self.file)


def read_pixels(file: Path) -> np.ndarray:
    """An image as `tokenize` reads it, uint8 [H, W, 3]. Raises UserError if the file is none, or is damaged."""
    try:
        return np.asarray(decode(file.read_bytes()))
    except (OSError, BadSampleError) as error:
        raise UserError(f"{file}: not a readable image: {error}") from error


def damage(files: Iterable[Path]) -> dict[Path, str]:
    """What is wrong with images that cannot be read; each one is decoded, so that none fails when others are done."""
    found = {}
    for file in tqdm(dict.fromkeys(files), desc="read", unit="image", leave=False):
        try:
            read_pixels(file)
        except UserError as error:
            found[file] = str(error)
    return found


def find_sources(config: ScoreConfig) -> list[Source]:
    """The images of a configuration; those of token shards are written to `output`/images first.

    Raises:
        UserError: there are none; an image cannot be read or has no prompt, or a prompt no image: all of them are
            named, of the first `limit`.
    """
    if config.codes:
        return list(_of_shards(config))
    assert config.images
    if config.prompts:
        return _of_table(config.images, config.prompts, config.limit)
    return images_of(config.images, config.limit)


def _of_table(folder: Path, prompts: Path, limit: int | None) -> list[Source]:
    rows = read_rows(prompts)
    if FILE not in rows[0].columns:
        raise UserError(f"{prompts}: expected a column `{FILE}` with the image of each prompt")
    sources = [Source(folder / str(row.columns[FILE]), row.text, row.columns) for row in rows[:limit]]
    there = {source.file: os.path.isfile(source.file) for source in sources}  # Path.is_file raises on a name too long
    bad = [f"{file}: not there, though {prompts} names it" for file in there if not there[file]]
    _refuse([*bad, *damage(file for file in there if there[file]).values()])
    return sources


def images_of(folder: Path, limit: int | None = None) -> list[Source]:
    """The images below a folder, with the prompts in or beside them, but for the overview that `generate` makes.

    Raises UserError, see `find_sources`.
    """
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower()[1:] in IMAGE_ENDINGS)
    sources = sources_of([path for path in found if path.name != CONTACT_SHEET][:limit])
    if not sources:
        raise UserError(f"{folder}: no image files there ({', '.join(IMAGE_ENDINGS)})")
    return sources


def sources_of(files: Sequence[Path]) -> list[Source]:
    """Images with the prompts in or beside them. Raises UserError, see `find_sources`."""
    bad, sources = damage(files), []
    for file in files:
        try:
            sources.append(Source(file, check_prompt(_prompt_of(file)), {}))
        except ValueError as error:
            bad.setdefault(file, f"{file}: {error}")
    _refuse([bad[file] for file in files if file in bad])
    return sources


def _prompt_of(file: Path) -> str:
    beside = file.with_suffix(".txt")
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    try:
        with Image.open(file) as image:
            return image.info["prompt"]
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("not a readable image") from None
    except KeyError:
        raise ValueError(
            f"no prompt: neither {beside.name} nor an entry `prompt`; or name a table, `prompts`"
        ) from None


def _refuse(bad: list[str]) -> None:
    if bad:
        raise UserError("\n".join(first_of(bad)))


def _of_shards(config: ScoreConfig) -> Iterator[Source]:
    assert config.codes and config.policy and config.tokenizer
    layout = read_layout(config.policy, config.tokenizer)
    shards, tokenizer = TokenShards(config.codes, layout), CosmosTokenizer(config.tokenizer, default_device())
    folder = config.output / "images"
    folder.mkdir(parents=True, exist_ok=True)
    number = min(int(shards.sizes.sum()), config.limit or int(shards.sizes.sum()))
    for i, row in enumerate(shards.rows(Piece(np.arange(len(shards.groups)), np.arange(number)), range(number))):
        (image,) = tokenizer.decode(row.codes[None], layout.rows, layout.columns)
        file = folder / f"{i:06d}.png"
        Image.fromarray(image).save(file)
        yield Source(file, row.caption, {})
