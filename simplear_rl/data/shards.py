"""Token shards: a folder of Parquet files with captions and codes, read a window of row groups at a time."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from simplear_rl.data.order import Piece
from simplear_rl.errors import UserError
from simplear_rl.files import repeated
from simplear_rl.policy.vocabulary import ImageLayout

IMAGE, PAIR = ("codes",), ("chosen", "rejected")  # columns of codes


@dataclass(frozen=True)
class TokenRow:
    """One image, or a pair."""

    caption: str
    short_caption: str | None
    codes: np.ndarray  # uint16 [T]; of a pair [2, T], the chosen image first
    place: str  # file and row, for messages
    weight: float = 1.0  # of its loss


@dataclass(frozen=True)
class RowGroup:
    """Where a row group is: its number in the file, and its rows there."""

    file: Path
    number: int
    rows: range
    suspect: bool  # its statistics say that a row of it must be wrong


class TokenShards:
    """The Parquet files of `folder`, in order of their names.

    `tokenizers` are the identities of the visual tokenizers that made the codes, as far as the files say, each with the
    first file that names it.

    Columns: `caption` (string), `codes` (list of integers), optionally `short_caption` (string, null where there is
    none) and `weight` (number of 0 or more, of the image's loss). `images` names other columns of codes, such as PAIR.
    Only the footers are read here; row groups are read and checked when a row of theirs is asked for, except those
    whose footer already shows that something is wrong.

    Raises:
        UserError: no shards or rows, shards that are not finished, missing columns, codes of the wrong number or
            outside the codebook, an empty caption; names the file and the row.
    """

    def __init__(self, folder: Path, layout: ImageLayout, images: tuple[str, ...] = IMAGE):
        files = sorted(folder.glob("*.parquet"))
        if not files:
            raise UserError(f"{folder}: no Parquet shards there (data.sources)")
        if (folder / "manifest.json").exists() and not (folder / "rejected.jsonl").exists():
            raise UserError(
                f"{folder}: `tokenize` has not finished these shards: give its command again. To train on those that "
                "are there, delete manifest.json"
            )
        self.layout, self.images = layout, images
        self.groups: list[RowGroup] = []
        self.tokenizers: dict[str, Path] = {}
        for file in files:
            groups, tokenizer = _read_footer(file, layout, images)
            self.groups += groups
            if tokenizer:
                self.tokenizers.setdefault(tokenizer, file)
        self.sizes = np.array([len(group.rows) for group in self.groups], dtype=np.int64)
        if not self.sizes.sum():
            raise UserError(f"{folder}: no rows in its Parquet shards")
        self.loaded: dict[int, list[TokenRow]] = {}
        for group in self.groups:
            if group.suspect:
                _read(group, layout, images)  # which says what is wrong in which row

    def rows(self, piece: Piece, chosen: Iterable[int]) -> Iterator[TokenRow]:
        """The `chosen` ones of the piece's rows. What is not of the piece's window is forgotten."""
        window = set(piece.groups.tolist())
        self.loaded = {index: content for index, content in self.loaded.items() if index in window}
        ends = np.cumsum(self.sizes[piece.groups])
        for row in chosen:
            at = np.searchsorted(ends, row, side="right")
            index = int(piece.groups[at])
            if index not in self.loaded:
                self.loaded[index] = _read(self.groups[index], self.layout, self.images)
            yield self.loaded[index][int(row - ends[at] + self.sizes[index])]


def _read_footer(file: Path, layout: ImageLayout, images: tuple[str, ...]) -> tuple[list[RowGroup], str | None]:
    """The row groups of a file, and the identity of its tokenizer, which ShardWriter puts there."""
    try:
        with parquet.ParquetFile(file) as shard:
            schema, metadata = shard.schema_arrow, shard.metadata
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable shard: {error}") from error
    used = "caption", "short_caption", "weight", *images
    if twice := repeated(name for name in schema.names if name in used):
        raise UserError(f"{file}: two columns are called {' and '.join(twice)}, expected one")
    if images == PAIR and "weight" in schema.names:
        raise UserError(f"{file}: column `weight`: the loss of pairs has no weights; leave it out")
    optional = "short_caption", "weight"
    for name, expected, fits in (
        ("caption", "string", _is_string),
        ("short_caption", "string", _is_string),
        ("weight", "number", _is_number),
        *((image, "list of integers", _is_list_of_integers) for image in images),
    ):
        found = schema.field(name).type if name in schema.names else None
        if (found is None and name not in optional) or (found is not None and not fits(found)):
            raise UserError(f"{file}: column `{name}` must be a {expected}, found {found or schema.names}")
    try:
        about = json.loads((metadata.metadata or {}).get(b"simplear_rl", b"{}"))
        tokenizer = about.get("tokenizer")
        if not isinstance(tokenizer, str | None):
            raise ValueError(f"tokenizer: expected text, found {tokenizer!r}")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: its metadata `simplear_rl` are not what `tokenize` writes: {error}") from error
    groups, first = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        try:
            suspect = _is_suspect(group, layout, images)
        except UnicodeDecodeError as error:  # in the name of a column
            raise UserError(f"{file}: not a readable shard: {error}") from error
        groups.append(RowGroup(file, number, range(first, first + group.num_rows), suspect))
        first += group.num_rows
    return groups, tokenizer


def _is_string(found: pa.DataType) -> bool:
    return pa.types.is_string(found) or pa.types.is_large_string(found)


def _is_number(found: pa.DataType) -> bool:
    return pa.types.is_floating(found) or pa.types.is_integer(found)


def _is_list_of_integers(found: pa.DataType) -> bool:
    lists = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    return any(is_list(found) for is_list in lists) and pa.types.is_integer(found.value_type)


def _is_suspect(group: parquet.RowGroupMetaData, layout: ImageLayout, images: tuple[str, ...]) -> bool:
    """Whether the footer's counts and extremes rule out that every row of the group is right."""
    for column in map(group.column, range(group.num_columns)):
        name, statistics = column.path_in_schema.split(".")[0], column.statistics
        if name in images and column.num_values != group.num_rows * layout.tokens:
            return True
        if not statistics:
            continue
        if name in ("caption", "weight", *images) and statistics.has_null_count and statistics.null_count:
            return True
        if not statistics.has_min_max:
            continue
        if name in images and (statistics.min < 0 or statistics.max >= layout.codebook_size):
            return True
        if name == "weight" and not 0 <= statistics.min <= statistics.max < math.inf:
            return True
        try:
            if name in ("caption", "short_caption") and not statistics.min.strip():
                return True
        except UnicodeDecodeError:  # damaged, or cut within a character by its writer: the rows will tell
            return True
    return False


def _read(group: RowGroup, layout: ImageLayout, images: tuple[str, ...]) -> list[TokenRow]:
    """The rows of a row group; all are checked."""
    try:
        with parquet.ParquetFile(group.file) as shard:
            table = shard.read_row_group(group.number, columns=["caption", "short_caption", "weight", *images])
        table.validate(full=True)  # captions are UTF-8, for one
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"{group.file}: rows {group.rows[0]} to {group.rows[-1]} cannot be read: {error}") from error
    codes = np.stack([_checked_codes(table[image], group, layout) for image in images], axis=1)
    captions = table["caption"].to_pylist()
    short = table["short_caption"].to_pylist() if "short_caption" in table.column_names else [None] * len(captions)
    for row, caption, short_caption in zip(group.rows, captions, short, strict=True):
        if not caption or not caption.strip():
            raise UserError(f"{group.file}: row {row}: empty caption")
        if short_caption is not None and not short_caption.strip():
            raise UserError(f"{group.file}: row {row}: empty short_caption (null means that there is none)")
    weights = table["weight"].to_pylist() if "weight" in table.column_names else [1.0] * len(captions)
    for row, weight in zip(group.rows, weights, strict=True):
        if weight is None or not 0 <= weight < math.inf:
            raise UserError(f"{group.file}: row {row}: weight {weight}, expected a number of 0 or more")
    codes = codes if len(images) > 1 else codes[:, 0]
    places = [f"{group.file}: row {row}" for row in group.rows]
    return [TokenRow(*parts) for parts in zip(captions, short, codes, places, weights, strict=True)]


def _checked_codes(column: pa.ChunkedArray, group: RowGroup, layout: ImageLayout) -> np.ndarray:
    expected = f"the policy expects 0 ... {layout.codebook_size - 1}"
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    for row in np.flatnonzero(lengths != layout.tokens):
        raise UserError(
            f"{group.file}: row {group.rows[row]}: {lengths[row]} codes, the policy expects {layout.tokens}: the size "
            "that `tokenize` takes is the policy's --resolution"
        )
    flat = pc.list_flatten(column)
    for position in np.flatnonzero(flat.is_null()) if flat.null_count else []:
        raise UserError(f"{group.file}: row {group.rows[position // layout.tokens]}: code null, {expected}")
    codes = flat.to_numpy()
    for position in np.flatnonzero((codes < 0) | (codes >= layout.codebook_size)):
        row = group.rows[position // layout.tokens]
        raise UserError(f"{group.file}: row {row}: code {codes[position]}, {expected}")
    return codes.astype(np.uint16, copy=False).reshape(-1, layout.tokens)
