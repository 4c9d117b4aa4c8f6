"""The folder of token shards that the tokenizer command fills."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from simplear_rl.config.data import TokenizeConfig
from simplear_rl.data.columns import Columns
from simplear_rl.data.listing import printable
from simplear_rl.data.readers import Part, texts_beside
from simplear_rl.data.shards import PAIR
from simplear_rl.errors import UserError
from simplear_rl.files import write_text, writing_to
from simplear_rl.tokenizers.cosmos import read_geometry, read_identity

CODES = pa.list_(pa.uint16())
COLUMNS = {"id": pa.string(), "caption": pa.string(), "short_caption": pa.string(), "codes": CODES}
PAIR_COLUMNS = {"id": pa.string(), "caption": pa.string()} | dict.fromkeys(PAIR, CODES)
ROW_GROUP = 1000  # images, so that training mixes well
KEYS = ("input", "files", "size", "batch_size", "shard_size")  # what the shards depend on, beside the tokenizer
# Where they are set.
CHOICES = (
    "image_column",
    "caption_column",
    "short_caption_column",
    "caption_choice",
    "min_size",
    "image_folder",
    "pairs",
)


class ShardWriter:
    """Shards with `id`, `caption`, `short_caption` (or null) and `codes` of the good samples, one per part.

    Of pairs `id`, `caption`, `chosen` and `rejected`, the last two codes.

    manifest.json        what the shards are made from
    NNNNN-MMMMM.parquet  the shard of part M of file N. Its file metadata say under `simplear_rl`, as JSON, what the
                         codes are (rows, columns, codebook_size, tokenizer) and what was rejected (file, key, reason)
    rejected.jsonl       once all shards are there: what was rejected in all of them

    A file appears complete or not at all. A part whose file cannot be read has no shard: it is one bad sample, and the
    next start tries it again, whatever its size then.

    Raises:
        UserError: the folder has shards of something else (names what differs), or the tokenizer does not fit: `size`
            is no multiple of its patch.
    """

    def __init__(self, config: TokenizeConfig, parts: list[Part]):
        geometry = read_geometry(config.tokenizer)
        if config.size % geometry.patch:
            raise UserError(f"size={config.size}: must be a multiple of the tokenizer's patch, {geometry.patch}")
        identity = read_identity(config.tokenizer)
        side = config.size // geometry.patch
        self.about = {"rows": side, "columns": side, "codebook_size": geometry.codebook_size, "tokenizer": identity}
        self.columns = PAIR_COLUMNS if config.pairs else COLUMNS
        self.folder, self.parts = config.output, {part.shard: part for part in parts}
        self.unfinished: dict[str, dict[int, dict[str, Any]]] = {}  # by shard and number
        self.unreadable = {part.shard: part.problem for part in parts if part.problem}
        values = config.model_dump(mode="json")
        chosen = {key: values[key] for key in CHOICES if values[key] is not None}
        if config.caption_choice == "random" or config.pairs == "keep_ties":
            chosen["seed"] = config.seed
        self.made_from = {key: values[key] for key in KEYS} | chosen | {"tokenizer": identity}
        self.made_from |= _sizes(parts, Columns.of(config))
        self._check_manifest()

    def _check_manifest(self) -> None:
        file = self.folder / "manifest.json"
        before: Any = None
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            problem = "" if isinstance(before, dict) else "is no list of what the shards are made from"
        except FileNotFoundError:
            problem = f"is missing, and {self.folder} has Parquet files of another origin"
        except (OSError, ValueError) as error:
            problem = f"is damaged ({error}) and says no longer what the Parquet files beside it are made from"
        self.begun = not problem
        if problem:
            if any(self.folder.glob("*.parquet")):
                raise UserError(f"{file}: {problem}; choose another output")
            return
        unknown = {key for key, size in before.items() if size is None}  # files that could not be read
        unknown |= {key for key, size in self.made_from.items() if size is None and key in before}
        for key in [*self.made_from, *before]:
            if self.made_from.get(key) != before.get(key) and key not in unknown:
                raise UserError(
                    f"{self.folder}: has shards of another {key}: {before.get(key)}, now {self.made_from.get(key)}; "
                    "choose another output"
                )
        self.made_from |= {key: before[key] for key, size in self.made_from.items() if size is None}

    def begin(self) -> None:
        """Write the manifest: the folder belongs to these shards from now on."""
        write_text(self.folder / "manifest.json", json.dumps(self.made_from, indent=1))

    def missing(self) -> list[Part]:
        """The parts that have no shard yet and can be read."""
        parts = [part for part in self.parts.values() if part.shard not in self.unreadable]
        return [part for part in parts if not self._file(part.shard).exists()]

    def add(self, row: dict[str, Any]) -> tuple[int, list[str]]:
        """Take a row of `sources.read_batches` with its codes, in any order; write the shard that it completes.

        Returns the row's number of good samples and the reasons of its bad ones.

        Raises:
            UserError: the part has another number of samples than it had when the input was divided, or the shard
                cannot be written.
        """
        if row["unreadable"]:
            self.unreadable[row["shard"]] = row["unreadable"]
            return 0, [row["unreadable"]]
        rows = self.unfinished.setdefault(row["shard"], {})
        rows[row["number"]] = row
        last = max(rows)
        if rows[last]["last"] and len(rows) == last + 1:
            self._write_shard(self.parts[row["shard"]], [rows[number] for number in range(last + 1)])
            del self.unfinished[row["shard"]]
        return len(row["codes"]), [entry["reason"] for entry in json.loads(row["rejected"])]

    def _write_shard(self, part: Part, rows: list[dict[str, Any]]) -> None:
        samples = [sample for row in rows for sample in json.loads(row["samples"])]
        rejected = [entry for row in rows for entry in json.loads(row["rejected"])]
        if part.rows is not None and len(samples) + len(rejected) != part.rows:
            raise UserError(f"{part.path}: has changed: {len(samples) + len(rejected)} samples, there were {part.rows}")
        codes = np.concatenate([row["codes"] for row in rows])
        images = (
            dict(zip(PAIR, codes.swapaxes(0, 1), strict=True)) if self.columns is PAIR_COLUMNS else {"codes": codes}
        )
        texts = {name: [sample[name] for sample in samples] for name in self.columns if name not in images}
        schema = pa.schema(self.columns, metadata={"simplear_rl": json.dumps(self.about | {"rejected": rejected})})
        table = pa.table(texts | {name: list(values) for name, values in images.items()}, schema=schema)
        partial = self.folder / f"{part.shard}.partial"
        with writing_to(partial):
            parquet.write_table(table, partial, row_group_size=ROW_GROUP)
            partial.rename(self._file(part.shard))

    def finish(self) -> tuple[int, list[dict[str, str]]]:
        """Write rejected.jsonl from all shards; returns the number of good samples, and the bad ones.

        Raises:
            UserError: a shard cannot be read.
        """
        good, rejected = self.made()
        write_text(self.folder / "rejected.jsonl", "".join(json.dumps(entry) + "\n" for entry in rejected))
        return good, rejected

    def made(self) -> tuple[int, list[dict[str, str]]]:
        """Of the shards that are there, the number of good samples, and file, key and reason of the bad ones.

        Files that cannot be read are among the bad ones.

        Raises:
            UserError: a shard cannot be read.
        """
        good, rejected = 0, []
        for shard, part in self.parts.items():
            if not self._file(shard).exists():
                if reason := self.unreadable.get(shard):
                    rejected.append({"file": printable(part.file), "key": "", "reason": printable(reason)})
                continue
            try:
                metadata = parquet.read_metadata(self._file(shard))
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{self._file(shard)}: not readable; delete it and start again: {error}") from error
            good += metadata.num_rows
            rejected += json.loads(metadata.metadata[b"simplear_rl"])["rejected"]
        return good, rejected

    def _file(self, shard: str) -> Path:
        return self.folder / f"{shard}.parquet"


def _sizes(parts: list[Part], columns: Columns) -> dict[str, Any]:
    """By file its bytes, None if it cannot be read; by folder of images their number and a digest.

    The digest is that of the names and sizes of the images and of the texts beside them.
    """
    sizes: dict[str, Any] = {
        f"size of {part.file}": None if part.problem else part.path.stat().st_size for part in parts if not part.images
    }
    folders: dict[str, list[Path]] = {}
    for part in parts:
        if part.images:
            folders.setdefault(part.file, []).extend(part.path / name for name in part.images)
    for folder, images in folders.items():
        files = [file for image in images for file in (image, *texts_beside(image, columns).values())]
        described = "\0".join(f"{file.name} {_size(file)}" for file in files)
        digest = hashlib.sha256(described.encode("utf-8", "surrogateescape")).hexdigest()
        sizes[f"images in {folder}"] = f"{len(images)}, with texts and sizes sha256:{digest}"
    return sizes


def _size(file: Path) -> int | None:
    """Bytes; None of a file that has vanished, which is a bad sample when it is read."""
    try:
        return file.stat().st_size
    except OSError:
        return None
