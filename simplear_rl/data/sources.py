"""Images with captions on disk: JSON lines, WebDataset tars or Parquet files, cut into parts that are read in one go.

A part becomes one shard of tokens. Which samples it holds depends on the input and on the length of parts alone, so
that a stopped run goes on with the parts that have no shard yet. (Ray Data's own readers have no such parts, and end
with the first damaged file.)
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from simplear_rl.data.images import BadSampleError, to_caption, to_square
from simplear_rl.errors import UserError

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Part:
    """Consecutive samples of one file."""

    shard: str  # name of the output: number of the file, number of the part in it
    folder: Path
    file: str  # relative to folder
    start: int = 0  # first row
    rows: int | None = None  # unknown for tars, which are never divided
    offset: int = 0  # byte at which the first row starts, for JSON lines

    @property
    def path(self) -> Path:
        return self.folder / self.file


@dataclass(frozen=True)
class RawSample:
    """What was found: `key` is the line number (from 1), the row (from 0) or the WebDataset key within the file."""

    key: str
    image: bytes = b""
    caption: Any = None
    short_caption: Any = None
    problem: str = ""  # why there is nothing else


def find_files(source: Path, pattern: str) -> list[Path]:
    """The data files below a folder that match a glob pattern, or the file that `source` is; sorted, all of one kind.

    Raises:
        UserError: no data files, or several kinds.
    """
    if source.is_file():
        found = [source]
    else:
        found = sorted(path for path in source.glob(pattern) if path.is_file())
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(source).parts)]
    files = [path for path in found if path.suffix in READERS]
    if not files:
        saved = any(path.suffix == ".arrow" for path in found)
        hint = "; a data set of save_to_disk has Arrow files: write it with to_parquet" if saved else ""
        raise UserError(f"{source}: no {', '.join(f'*{kind}' for kind in READERS)} among {pattern} (files){hint}")
    first = {path.suffix: path.name for path in reversed(files)}
    if len(first) > 1:
        raise UserError(
            f"{source}: several kinds of data ({', '.join(sorted(first.values()))}): "
            f"choose one, for example files='**/*{min(first)}'"
        )
    return files


def divide(source: Path, files: list[Path], rows: int) -> list[Part]:
    """Cut files into parts of at most `rows` samples; a tar is one part.

    Raises:
        UserError: a Parquet file that cannot be read, or has no columns `image` (bytes, or Hugging Face's struct with
            bytes) and `caption` (text).
    """
    folder = source if source.is_dir() else source.parent
    parts = []
    for number, path in enumerate(files):
        file = str(path.relative_to(folder))
        for index, (start, length, offset) in enumerate(_cuts(path, rows)):
            parts.append(Part(f"{number:05d}-{index:05d}", folder, file, start, length, offset))
    return parts


def _cuts(path: Path, rows: int) -> Iterator[tuple[int, int | None, int]]:
    """First row, number of rows and byte offset of each part of a file."""
    if path.suffix == ".tar":
        yield 0, None, 0
    elif path.suffix == ".parquet":
        total = _check_columns(path)
        yield from ((start, min(rows, total - start), 0) for start in range(0, total, rows))
    else:
        with path.open("rb") as file:
            start = offset = 0
            while lengths := [len(line) for line in islice(file, rows)]:
                yield start, len(lengths), offset
                start, offset = start + len(lengths), offset + sum(lengths)


def _check_columns(path: Path) -> int:
    """Number of rows of a Parquet file that has what is needed."""
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error
    types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    image, caption = types.get("image"), types.get("caption")
    if isinstance(image, pa.StructType) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if image not in (pa.binary(), pa.large_binary()) or caption not in (pa.string(), pa.large_string()):
        found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"{path}: expected the columns image (bytes) and caption (text), found {found}")
    return file.metadata.num_rows


def read_batches(part: Part, size: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """A part as rows of at most `batch_size` images, from which `shard_writer.ShardWriter` puts its shard together.

    A row has `shard`, `number` (0, 1, ... within the part), `last` (whether it is the part's last), `images` (uint8
    [B, size, size, 3]) and, as JSON, `samples` (id, caption and short_caption of each image) and `rejected` (file, key
    and reason of the bad samples among them).
    """
    images: list[np.ndarray] = []
    samples: list[dict[str, str | None]] = []
    rejected: list[dict[str, str]] = []
    number = 0

    def row(last: bool) -> dict[str, Any]:
        pixels = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
        texts = {"samples": json.dumps(samples), "rejected": json.dumps(rejected)}
        return {"shard": part.shard, "number": number, "last": last, "images": pixels} | texts

    for found in READERS[part.path.suffix](part):
        key = _printable(found.key)
        try:
            if found.problem:
                raise BadSampleError(found.problem)
            caption = to_caption(found.caption, "caption")
            short = None if found.short_caption is None else to_caption(found.short_caption, "short_caption")
            image = to_square(found.image, size)
        except BadSampleError as reason:
            rejected.append({"file": _printable(part.file), "key": key, "reason": _printable(str(reason))})
            continue
        images.append(image)
        samples.append({"id": f"{_printable(part.file)}:{key}", "caption": caption, "short_caption": short})
        if len(images) == batch_size:
            yield row(last=False)
            number, images, samples, rejected = number + 1, [], [], []
    yield row(last=True)


def _printable(name: str) -> str:
    """File names need not be valid Unicode, what is written about them must."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_lines(part: Part) -> Iterator[RawSample]:
    with part.path.open("rb") as file:
        file.seek(part.offset)
        for number, line in enumerate(islice(file, part.rows), start=part.start + 1):
            yield _read_line(part, str(number), line)


def _read_line(part: Part, key: str, line: bytes) -> RawSample:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        return RawSample(key, problem=f"not JSON: {error}")
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        return RawSample(key, problem="expected an object with the path `image`")
    try:
        image = (part.path.parent / entry["image"]).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no valid path at all
        return RawSample(key, problem=f"{entry['image']}: {getattr(error, 'strerror', None) or error}")
    return RawSample(key, image, entry.get("caption"), entry.get("short_caption"))


def _read_tar(part: Part) -> Iterator[RawSample]:
    """As in WebDataset, consecutive files with the same path up to the first dot of the name are a sample."""
    keys: set[str] = set()
    problems: list[RawSample] = []
    for key, members in groupby(_read_members(part, problems), key=lambda member: member[0]):
        fields = [(kind, data) for _, kind, data in members]
        if key in keys or len(dict(fields)) < len(fields):
            yield RawSample(key, problem="the key has two files of a kind, or files in several places")
        else:
            yield _read_fields(key, dict(fields))
        keys.add(key)
    yield from problems


def _read_members(part: Part, problems: list[RawSample]) -> Iterator[tuple[str, str, bytes]]:
    """Key, kind and content of the files in a tar that have both; what cannot be read goes to `problems`."""
    name = "the start"
    try:
        with part.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name
                folder, slash, base = name.rpartition("/")
                stem, _, kind = base.partition(".")
                if stem and kind and member.isreg():
                    yield folder + slash + stem, kind.lower(), tar.extractfile(member).read()  # type: ignore[union-attr]
                elif not member.isreg() and not member.isdir():
                    problems.append(RawSample(name, problem="a link or special file"))
            # At a broken header, and at the end of the first of several archives, tarfile stops without a word.
            file.seek(tar.offset)
            if any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b"")):
                raise tarfile.ReadError(f"no header at byte {tar.offset}, but more data")
    except tarfile.TarError as error:
        problems.append(RawSample(f"after {name}", problem=f"damaged archive, what follows is lost: {error}"))


def _read_fields(key: str, fields: dict[str, bytes]) -> RawSample:
    images = [fields[kind] for kind in IMAGE_KINDS if kind in fields]
    if len(images) != 1:
        return RawSample(key, problem=f"expected one image ({', '.join(IMAGE_KINDS)}), found {len(images)}")
    try:
        texts = json.loads(fields.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        return RawSample(key, problem=f"json: not JSON: {error}")
    if not isinstance(texts, dict):
        return RawSample(key, problem=f"json: expected an object, found {type(texts).__name__}")
    return RawSample(key, images[0], fields.get("txt", texts.get("caption")), texts.get("short_caption"))


def _read_parquet(part: Part) -> Iterator[RawSample]:
    file = parquet.ParquetFile(part.path, page_checksum_verification=True)
    stop, end = part.start + (part.rows or 0), 0
    for group in range(file.num_row_groups):
        row, end = end, end + file.metadata.row_group(group).num_rows
        if end <= part.start or row >= stop:
            continue
        try:
            for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=_columns(file)):
                for values in _as_bytes(batch).to_pylist():
                    if part.start <= row < stop:
                        yield _read_row(str(row), **values)
                    row += 1
        except (OSError, pa.ArrowException) as error:
            for lost in range(max(row, part.start), min(end, stop)):
                yield RawSample(str(lost), problem=f"damaged Parquet file: {error}")


def _columns(file: parquet.ParquetFile) -> list[str]:
    schema = file.schema_arrow
    image = "image.bytes" if isinstance(schema.field("image").type, pa.StructType) else "image"
    return [image, "caption", *(name for name in ("short_caption",) if name in schema.names)]


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With bytes for texts: what is no valid Unicode is then found sample by sample."""
    texts = (pa.string(), pa.large_string())
    return batch.cast(pa.schema([f.with_type(pa.large_binary()) if f.type in texts else f for f in batch.schema]))


def _read_row(key: str, image: Any, caption: Any, short_caption: Any = None) -> RawSample:
    image = image["bytes"] if isinstance(image, dict) else image
    return RawSample(key, image, caption, short_caption, problem="" if image else "no image bytes")


READERS: dict[str, Callable[[Part], Iterator[RawSample]]] = {
    ".jsonl": _read_lines,
    ".tar": _read_tar,
    ".parquet": _read_parquet,
}
