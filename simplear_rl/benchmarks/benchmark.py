"""What every benchmark has: prompts, a folder layout of its own for their images, rules that judge them, scores."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from simplear_rl.errors import UserError, first_of

READERS = 8  # threads


@dataclass(frozen=True)
class Sample:
    """One image of a prompt."""

    name: str  # its file, below the folder of the images; "#k" follows where one file holds several
    number: int  # among the images of its prompt, from 0
    pixels: np.ndarray  # uint8 [H, W, 3]

    @property
    def checksum(self) -> int:
        """CRC-32 of the pixels."""
        return zlib.crc32(self.pixels.tobytes())


@dataclass(frozen=True)
class Box:
    """A rectangle on the page of an evaluation; x0, y0, x1, y1 in pixels."""

    edges: tuple[float, float, float, float]
    text: str


class Benchmark(Protocol):
    """Prompts, images and rules. Holds no model, so that the driver and every scorer have their own."""

    texts: list[str]  # the prompts; an index below is a place in this list

    def write(self, folder: Path, index: int, images: np.ndarray) -> None:
        """Write a prompt's images, uint8 [G, H, W, 3], in the benchmark's layout."""

    def load(self, folder: Path, index: int, number: int) -> tuple[list[Sample], list[str]]:
        """A prompt's images, and a line for everything that keeps them from being `number` good ones."""

    def extra(self, folder: Path) -> list[str]:
        """A line for everything in the folder that belongs to no prompt."""

    def judge(self, index: int, samples: Sequence[Sample], model: Any) -> list[dict]:
        """A row for each image, ready for JSON; what it holds is the benchmark's affair, but for its `filename`."""

    def score_names(self) -> list[str]:
        """What `summary` has scores of. Raises UserError if there are no prompts for one of them."""

    def summary(self, rows: Sequence[dict]) -> dict:
        """`scores` and `confidence_intervals` by name, and what else belongs beside them. Raises ValueError."""

    def section(self, index: int) -> str:
        """Under which heading of the page a prompt stands."""

    def requirements(self, index: int) -> list[str]:
        """What a prompt's images must show, in words."""

    def rules_of(self, index: int) -> Any:
        """All that a prompt is judged by, ready for JSON."""

    def outcome(self, row: dict) -> tuple[bool, str, list[str], list[Box]]:
        """Of a row: whether all is well, the verdict in a word, what is missing, and what was found where."""


def open_image(file: Path) -> Image.Image:
    """An image file, read whole. Raises UserError."""
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: not a readable image: {error}") from error
    return image


def read_image(file: Path) -> np.ndarray:
    """Pixels uint8 [H, W, 3] of an RGB image file. Raises UserError."""
    image = open_image(file)
    if image.mode != "RGB":
        raise UserError(f"{file}: expected an RGB image, found mode {image.mode}")
    return np.asarray(image)


def read_text(file: Path, where_from: str) -> str:
    """A file of a benchmark, UTF-8, which does not come with this package. Raises UserError that says where it is."""
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise UserError(f"{file}: not found; it is published at {where_from}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error


def require_images(benchmark: Benchmark, folder: Path, number: int, allow_missing: bool) -> dict[int, list[int]]:
    """Checksums of the images that others made, per prompt; with `allow_missing` what is amiss is only printed.

    Raises:
        UserError: images are missing or damaged, or belong to no prompt.
    """
    checksums, problems = inspect(benchmark, folder, number)
    lines = "\n".join([f"{folder}: {len(problems)} problems", *first_of(problems)])
    if problems and not allow_missing:
        raise UserError(
            f"{lines}\nexpected are images_per_prompt={number} of each prompt; with allow_missing=true the good images "
            "are scored and the others counted"
        )
    if problems:
        print(lines)
    return checksums


def inspect(benchmark: Benchmark, folder: Path, number: int) -> tuple[dict[int, list[int]], list[str]]:
    """Read all images that others made: checksums of the good ones per prompt, and a line for everything amiss."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of images")
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(partial(_inspect, benchmark, folder, number), range(len(benchmark.texts))))
    problems = [line for _, lines in found for line in lines]
    return {i: checksums for i, (checksums, _) in enumerate(found)}, problems + benchmark.extra(folder)


def _inspect(benchmark: Benchmark, folder: Path, number: int, index: int) -> tuple[list[int], list[str]]:
    samples, problems = benchmark.load(folder, index, number)
    return [sample.checksum for sample in samples], problems
