"""Images with captions on disk, cut into parts that are read in one go.

A part becomes one shard of tokens. Which samples it holds depends on the input and on the length of parts alone, so
that a stopped run goes on with the parts that have no shard yet. (Ray Data's own readers have no such parts, and end
with the first damaged file.)
"""

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from simplear_rl.data.columns import KNOWN, Columns
from simplear_rl.data.images import BadSampleError, to_caption, to_square
from simplear_rl.data.json_records import begins_ranking, records
from simplear_rl.data.listing import Listing, printable
from simplear_rl.data.readers import Part, RawSample, open_parquet, read_samples
from simplear_rl.errors import UserError


def divide(listing: Listing, rows: int, columns: Columns = KNOWN) -> list[Part]:
    """Cut files into parts of at most `rows` samples.

    A tar is one part, as are a file of rankings and one that cannot be read. Files without samples are passed over.

    Raises:
        UserError: pairs are asked for, and the files hold single images.
    """
    if columns.pairs and (listing.of_images or listing.files[0].suffix.lower() == ".tar"):
        raise UserError(
            f"{listing.folder}: {listing.kind} hold single images; pairs are read from JSON lines, JSON arrays and "
            "Parquet files"
        )
    if listing.of_images:
        return list(_divide_images(listing, rows))
    parts = []
    for number, path in enumerate(listing.files):
        file = str(path.relative_to(listing.folder))
        try:
            cuts = list(_cuts(path, rows, columns))
        except OSError as error:
            parts.append(Part(f"{number:05d}-00000", listing.folder, file, problem=_reason(error)))
            continue
        if not cuts:
            listing.pass_over(path, "files without samples")
        for index, (start, length, offset) in enumerate(cuts):
            parts.append(Part(f"{number:05d}-{index:05d}", listing.folder, file, start, length, offset))
    return parts


def _cuts(path: Path, rows: int, columns: Columns) -> Iterator[tuple[int, int | None, int]]:
    """First row, number of rows and byte offset of each part of a file."""
    kind = path.suffix.lower()
    if kind == ".tar":
        with path.open("rb") as file:
            file.read(1)
        yield 0, None, 0
    elif kind == ".parquet":
        total = open_parquet(path).metadata.num_rows
        yield from ((start, min(rows, total - start), 0) for start in range(0, total, rows))
    elif columns.pairs and begins_ranking(path):
        yield 0, None, 0
    else:
        found = records(path)
        start = offset = 0
        while lengths := [len(record) for record in islice(found, rows)]:
            yield start, len(lengths), offset
            start, offset = start + len(lengths), offset + sum(lengths)


def _divide_images(listing: Listing, rows: int) -> Iterator[Part]:
    for number, (folder, paths) in enumerate(groupby(listing.files, key=lambda path: path.parent)):
        names = [path.name for path in paths]
        file = str(folder.relative_to(listing.folder))
        for index, start in enumerate(range(0, len(names), rows)):
            images = tuple(names[start : start + rows])
            yield Part(f"{number:05d}-{index:05d}", listing.folder, file, start, len(images), images=images)


def most_samples(parts: list[Part]) -> int:
    """The number of samples in all parts, or somewhat more; of tars the headers are read, and rankings as a whole."""
    return sum(_most_samples(part) if part.rows is None else part.rows for part in parts)


def _most_samples(part: Part) -> int:
    if part.path.suffix.lower() == ".tar":
        return _samples_of_tar(part)
    entries = 0
    with suppress(OSError):
        for _ in records(part.path):
            entries += 1
    return entries * (entries - 1) // 2 + 1  # one for what may be damaged


def _samples_of_tar(part: Part) -> int:
    keys = 1  # one for what may be damaged
    last = None
    with (
        suppress(OSError, tarfile.TarError),
        part.path.open("rb") as file,
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        for member in tar:
            folder, _, base = member.name.rpartition("/")
            stem, _, kind = base.partition(".")
            key = folder, stem
            keys += key != last or not kind or not member.isreg()
            last = key
    return keys


def _reason(error: OSError) -> str:
    return f"the file cannot be read: {error.strerror or error}"


def read_sample(
    part: Part, found: RawSample, size: int, columns: Columns, min_size: int | None = None
) -> tuple[np.ndarray, dict[str, str | None]]:
    """Image uint8 [size, size, 3], and id, caption and short caption of a sample. Raises BadSampleError.

    Of a pair both images, the chosen one first: [2, size, size, 3].
    """
    name = f"{printable(part.file)}:{printable(found.key)}"
    if found.problem:
        raise BadSampleError(found.problem)
    caption = to_caption(columns.chosen(found.caption, name), "caption")
    short = columns.chosen(found.short_caption, name)
    short = None if short is None else to_caption(short, "short_caption")
    image = to_square(found.image, size, min_size)
    if columns.pairs:
        image = np.stack([image, to_square(found.rejected, size, min_size)])
    return image, {"id": name, "caption": caption, "short_caption": short}


def read_batches(
    part: Part,
    size: int,
    batch_size: int,
    columns: Columns = KNOWN,
    min_size: int | None = None,
) -> Iterator[dict[str, Any]]:
    """A part as rows of at most `batch_size` images, from which `shard_writer.ShardWriter` puts its shard together.

    A row has `shard`, `number` (0, 1, ... within the part), `last` (whether it is the part's last), `images` (uint8
    [B, size, size, 3], of pairs [B, 2, size, size, 3]) and, as JSON, `samples` (id, caption and short_caption of each
    image or pair) and `rejected` (file, key and reason of the bad samples among them). `unreadable` says why the part's
    file cannot be read, in the last row.
    """
    images: list[np.ndarray] = []
    samples: list[dict[str, str | None]] = []
    rejected: list[dict[str, str]] = []
    number = 0

    def row(last: bool, unreadable: str = "") -> dict[str, Any]:
        pair = (2,) if columns.pairs else ()
        pixels = np.stack(images) if images else np.empty((0, *pair, size, size, 3), np.uint8)
        texts = {"samples": json.dumps(samples), "rejected": json.dumps(rejected), "unreadable": unreadable}
        return {"shard": part.shard, "number": number, "last": last, "images": pixels} | texts

    try:
        for found in read_samples(part, columns):
            try:
                image, sample = read_sample(part, found, size, columns, min_size)
            except BadSampleError as error:
                names = {"file": printable(part.file), "key": printable(found.key)}
                rejected.append(names | {"reason": printable(str(error))})
                continue
            images.append(image)
            samples.append(sample)
            if len(images) == batch_size:
                yield row(last=False)
                number, images, samples, rejected = number + 1, [], [], []
    except OSError as error:
        images, samples, rejected = [], [], []
        yield row(last=True, unreadable=printable(_reason(error)))
    else:
        yield row(last=True)
