"""Samples as they lie on disk: one reader for each kind of data."""

import errno
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from simplear_rl.data.columns import IMAGE_ENDINGS, Columns, FormatError, missing
from simplear_rl.data.images import BadSampleError
from simplear_rl.data.json_records import parse, read_object, records
from simplear_rl.data.pair_forms import is_ranked, pair_form, pairs_of_ranking, unknown_pair
from simplear_rl.errors import some_of
from simplear_rl.files import parse_json, repeated

PARQUET_BUFFER = 2**20  # bytes of a column at a time: a row group may hold all images of a file
SHOWN = 200  # characters of a path in a message: it may be a whole image in base64
# What is wrong with one image for good. Any other error is the storage's: the part is read again at the next start.
OF_THE_IMAGE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.EINVAL,
    errno.EILSEQ,
)


@dataclass(frozen=True)
class Part:
    """Consecutive samples of one file, or of the images in one folder."""

    shard: str  # name of the output: number of the file, number of the part in it
    folder: Path
    file: str  # relative to folder
    start: int = 0  # first row
    rows: int | None = None  # unknown for tars, which are never divided
    offset: int = 0  # byte at which the first row starts, for JSON
    images: tuple[str, ...] = ()  # names of the images, where `file` is a folder
    problem: str = ""  # why the file cannot be read

    @property
    def path(self) -> Path:
        return self.folder / self.file


@dataclass(frozen=True)
class RawSample:
    """What was found: `key` is the line or element (from 1), row (from 0), WebDataset key or name within the file."""

    key: str
    image: bytes = b""
    caption: Any = None
    short_caption: Any = None
    problem: str = ""  # why there is nothing else
    misnamed: str = ""  # which column is missing, or that several may be meant
    used: tuple[str | None, ...] = ()  # names of the columns
    rejected: bytes = b""  # the other image of a pair


def read_samples(part: Part, columns: Columns) -> Iterator[RawSample]:
    """The samples of a part, good or not.

    Raises:
        OSError: the part's file or folder cannot be read, or the storage of an image fails.
    """
    if part.images:
        return _read_images(part, columns)
    return READERS[part.path.suffix.lower()](part, columns)


def has_images(path: Path, columns: Columns) -> bool:
    """Whether the first sample of a file has a column for the image; False if the file cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            return columns.image_in(open_parquet(path).schema_arrow.names) is not None
        if path.suffix.lower() in (".jsonl", ".json"):
            entry = parse(path, next(records(path), b"{}"))
            return isinstance(entry, dict) and columns.image_in(entry) is not None
    except FormatError:
        return columns.image is None  # several columns may be the image; or the chosen one is missing
    except OSError:
        return False
    except ValueError:
        pass
    return True


def open_parquet(path: Path) -> parquet.ParquetFile:
    """A Parquet file whose checksums are looked at. Raises OSError if it cannot be read."""
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=PARQUET_BUFFER)
    except (OSError, pa.ArrowException) as error:
        raise OSError(f"not a readable Parquet file: {error}") from error


def _read_records(part: Part, columns: Columns) -> Iterator[RawSample]:
    ranked = []
    found = islice(records(part.path, part.offset, part.start + 1), part.rows)
    for number, record in enumerate(found, start=part.start + 1):
        entry = read_object(part.path, record)
        if isinstance(entry, str):
            yield RawSample(str(number), problem=entry)
        elif columns.pairs and part.rows is None and is_ranked(entry):
            ranked.append((str(number), entry))
        else:
            yield _read_columns(str(number), entry, part.path.parent, columns)
    for key, values in pairs_of_ranking(ranked):
        yield _read_columns(key, values, part.path.parent, columns)


def _read_columns(key: str, values: dict[str, Any], folder: Path, columns: Columns) -> RawSample:
    """A sample from the values of its columns; the path of an image is relative to `folder`."""
    rejected, folder = b"", columns.image_folder or folder
    try:
        used = columns.used_in(values)
        if columns.pairs:
            if not (form := pair_form(values)):
                raise FormatError(unknown_pair(values))
            better, worse = columns.ordered(form.read(values), f"{key}:{values.get(used[1] or '')}")
            image, rejected = _load(better, folder), _load(worse, folder)
        elif used[0] is None:
            raise FormatError(missing("image", values))
        else:
            image = _load(values[used[0]], folder)
    except BadSampleError as error:
        return RawSample(key, problem=str(error), misnamed=str(error) if isinstance(error, FormatError) else "")
    return _of_columns(key, image, values, used, rejected)


def _of_columns(
    key: str, image: bytes, values: dict[str, Any], used: tuple[str | None, ...], rejected: bytes = b""
) -> RawSample:
    """A sample from its image and the names of its columns: image, caption, short caption."""
    caption, short_caption = (None if name is None else values[name] for name in used[1:])
    misnamed = missing("caption", values) if used[1] is None else ""
    return RawSample(key, image, caption, short_caption, misnamed=misnamed, used=used, rejected=rejected)


def _load(image: Any, folder: Path) -> bytes:
    """The image that a column holds: bytes, a path, or Hugging Face's struct with either."""
    if isinstance(image, dict):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes) and image:
        return image
    if not image:
        raise BadSampleError("no image bytes")
    if not isinstance(image, str):
        raise BadSampleError(f"image: expected bytes or a path, found {type(image).__name__}")
    shown = image if len(image) <= SHOWN else f"{image[:SHOWN]}..."
    if "://" in image or image.startswith("data:"):
        raise BadSampleError(f"{shown}: an address, expected a file: download the images first")
    try:
        return (folder / image).read_bytes()
    except ValueError as error:
        raise BadSampleError(f"{shown}: {error}") from None
    except OSError as error:
        raise _bad_image(error, shown) from None


def _bad_image(error: OSError, name: str) -> BadSampleError:
    """What is wrong with an image. Raises the error itself where the storage is to blame."""
    if error.errno not in OF_THE_IMAGE:
        raise error
    return BadSampleError(f"{name}: {error.strerror}")


def _read_tar(part: Part, columns: Columns) -> Iterator[RawSample]:
    """As in WebDataset, consecutive files with the same path up to the first dot of the name are a sample."""
    keys: set[str] = set()
    problems: list[RawSample] = []
    for key, members in groupby(_read_members(part, problems), key=lambda member: member[0]):
        fields = [(kind, data) for _, kind, data in members]
        if key in keys or len(dict(fields)) < len(fields):
            yield RawSample(key, problem="the key has two files of a kind, or files in several places")
        else:
            yield _read_fields(key, dict(fields), columns)
        keys.add(key)
    yield from problems


def _read_members(part: Part, problems: list[RawSample]) -> Iterator[tuple[str, str, bytes]]:
    """Key, kind and content of the files in a tar; what cannot be read or has no kind goes to `problems`."""
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
                elif stem and member.isreg():  # without a stem it is hidden
                    problems.append(RawSample(name, problem="no ending, expected one such as jpg or txt"))
            # At a broken header, and at the end of the first of several archives, tarfile stops without a word.
            file.seek(tar.offset)
            if any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b"")):
                raise tarfile.ReadError(f"no header at byte {tar.offset}, but more data")
    except tarfile.TarError as error:
        problems.append(RawSample(f"after {name}", problem=f"damaged archive, what follows is lost: {error}"))


def _read_images(part: Part, columns: Columns) -> Iterator[RawSample]:
    """Images, and beside each one files of the same name and another ending."""
    part.path.stat()  # on a machine that lacks the folder no image is to blame
    for name in part.images:
        path = part.path / name
        try:
            fields = {path.suffix.lower().removeprefix("."): path.read_bytes()}
            fields |= {ending: text.read_bytes() for ending, text in texts_beside(path, columns).items()}
        except OSError as error:
            yield RawSample(name, problem=str(_bad_image(error, Path(error.filename or name).name)))
        else:
            yield _read_fields(name, fields, columns)


def texts_beside(image: Path, columns: Columns) -> dict[str, Path]:
    """By ending, in capitals or not, the files that lie beside an image and may hold its captions."""
    texts = {}
    for ending in sorted({"txt", "json", *filter(None, (columns.caption, columns.short_caption))}):
        # To list the folder for each image would take too long.
        forms = dict.fromkeys((ending, ending.lower(), ending.upper(), ending.capitalize()))
        paths = (f"{image.parent}/{image.stem}.{form}" for form in forms)
        if path := next(filter(os.path.isfile, paths), None):
            texts[ending] = Path(path)
    return texts


def _read_fields(key: str, fields: dict[str, bytes], columns: Columns) -> RawSample:
    """A sample from files by their ending; the keys in `json` are columns as well, behind a caption in `txt`."""
    images = [kind for kind in ([columns.image] if columns.image else IMAGE_ENDINGS) if kind in fields]
    if len(images) != 1:
        expected = columns.image or ", ".join(IMAGE_ENDINGS)
        problem = f"expected one image ({expected}), found {len(images)} among {some_of(sorted(fields), 5)}"
        return RawSample(key, problem=f"{problem}; in a tar a key ends at the first dot of the name")
    try:
        texts = parse_json(fields.get("json", b"{}"))
    except ValueError as error:
        return RawSample(key, problem=f"json: {error}")
    if not isinstance(texts, dict):
        return RawSample(key, problem=f"json: expected an object, found {type(texts).__name__}")
    texts |= {kind: data for kind, data in fields.items() if kind not in (*images, "json")}
    try:
        caption = "txt" if columns.caption is None and "txt" in fields else columns.caption_in(texts)
        short_caption = columns.short_caption_in(texts)
    except FormatError as error:
        return RawSample(key, problem=str(error), misnamed=str(error))
    return _of_columns(key, fields[images[0]], texts, (images[0], caption, short_caption))


def _read_parquet(part: Part, columns: Columns) -> Iterator[RawSample]:
    file = open_parquet(part.path)
    names = file.schema_arrow.names
    try:
        used = columns.used_in_table(dict.fromkeys(names))
        form = pair_form(names) if columns.pairs else None
        if columns.pairs and not form:
            raise FormatError(unknown_pair(names))
        if None in used[:2]:
            raise FormatError(missing("image" if used[0] is None else "caption", names))
        images = form.images if form else used[:1]
        wanted = [*form.columns_in(names), *used[1:]] if form else used
        if twice := repeated(name for name in names if name in wanted):
            raise FormatError(f"two columns are called {' and '.join(twice)}: rename one of them")
    except FormatError as error:
        for row in range(part.start, part.start + (part.rows or 0)):
            yield RawSample(str(row), problem=str(error), misnamed=str(error))
        return
    stop, end = part.start + (part.rows or 0), 0
    for group in range(file.num_row_groups):
        row, end = end, end + file.metadata.row_group(group).num_rows
        if end <= part.start or row >= stop:
            continue
        rows = _rows(file, group, [name for name in wanted if name], images)
        while row < min(end, stop):
            try:
                values = next(rows)
            except (OSError, pa.ArrowException, UnicodeDecodeError, StopIteration) as error:
                for lost in range(max(row, part.start), min(end, stop)):
                    yield RawSample(str(lost), problem=f"damaged Parquet file: {error}")
                break
            if row >= part.start:
                yield _read_columns(str(row), values, part.path.parent, columns)
            row += 1


def _rows(
    file: parquet.ParquetFile, group: int, columns: list[str], images: Sequence[str | None]
) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=columns):
        yield from _as_bytes(batch, images).to_pylist()


def _as_bytes(batch: pa.RecordBatch, images: Sequence[str | None]) -> pa.RecordBatch:
    """With bytes for captions: what is no valid Unicode is then found sample by sample."""
    fields = [field if field.name in images else field.with_type(_without_text(field.type)) for field in batch.schema]
    return batch.cast(pa.schema(fields))


def _without_text(kind: pa.DataType) -> pa.DataType:
    if kind in (pa.string(), pa.large_string()):
        return pa.large_binary()
    if isinstance(kind, pa.ListType | pa.LargeListType):
        return pa.list_(_without_text(kind.value_type))
    return kind


READERS: dict[str, Callable[[Part, Columns], Iterator[RawSample]]] = {
    ".jsonl": _read_records,
    ".json": _read_records,
    ".tar": _read_tar,
    ".parquet": _read_parquet,
}
