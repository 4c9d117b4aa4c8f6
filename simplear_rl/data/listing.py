"""What is found below a folder: the data files that are read, and by reason all that is passed over."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from simplear_rl.data.columns import IMAGE_ENDINGS, KNOWN, Columns
from simplear_rl.data.json_records import is_array
from simplear_rl.data.readers import has_images, texts_beside
from simplear_rl.errors import UserError, some_of

KINDS = {".jsonl": "JSON lines", ".json": "JSON arrays", ".tar": "WebDataset tars", ".parquet": "Parquet files"}
MANY = (".jsonl", ".tar", ".parquet")  # the kinds that are never the text of a single image
IMAGES = "images with texts of the same name"
COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip", ".7z", ".rar", ".lz4")


@dataclass
class Listing:
    """The data files of one kind, sorted, and the names of what is passed over by reason."""

    folder: Path
    kind: str = ""
    files: list[Path] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def of_images(self) -> bool:
        """Whether the files are images with texts beside them."""
        return self.kind == IMAGES

    def pass_over(self, path: Path, reason: str) -> None:
        """Note that a file or folder is not read."""
        self.passed_over[reason].append(str(path.relative_to(self.folder)))

    def __str__(self) -> str:
        """One line on what is read, one line for each reason to pass something over, with up to three names."""
        lines = [f"{self.folder}: {self.kind}: {len(self.files)}" if self.files else f"{self.folder}:"]
        for reason, names in sorted(self.passed_over.items()):
            lines.append(f"  passed over, {reason}: {len(names)} ({some_of(sorted(names), 3)})")
        return printable("\n".join(lines))


def printable(name: str) -> str:
    """File names need not be valid Unicode, what is written about them must."""
    return name.encode("utf-8", "backslashreplace").decode()


def find_files(source: Path, pattern: str, output: Path | None = None, columns: Columns = KNOWN) -> Listing:
    """The data files below a folder that match a glob pattern, or the file that `source` is.

    Linked folders are followed, each folder once. `output` is passed over. Files of a kind without images are passed
    over where another kind has images.

    Raises:
        UserError: no data files, or several kinds with images.
    """
    listing = Listing(source if source.is_dir() else source.parent)
    paths = list(_walk(listing, pattern.split("/"), output)) if source.is_dir() else [source]
    kinds = _by_kind(listing, sorted(paths), columns)
    _drop_sidecars(listing, kinds, columns)
    if not kinds:
        raise UserError(
            f"{source}: no {', '.join(f'*{kind}' for kind in KINDS)} and no images with texts among {pattern} (files)"
            f"{str(listing).removeprefix(str(listing.folder) + ':')}"
        )
    if len(kinds) > 1:
        first = ", ".join(sorted(files[0].name for files in kinds.values()))
        counts = ", ".join(f"{len(files)} {KINDS.get(kind, IMAGES)}" for kind, files in sorted(kinds.items()))
        raise UserError(
            f"{source}: several kinds of data with images ({first}): {counts}; choose one, for example "
            f"files='**/*{min(kinds)}'"
        )
    [(kind, listing.files)] = kinds.items()
    listing.kind = KINDS.get(kind, IMAGES)
    return listing


def _by_kind(listing: Listing, paths: list[Path], columns: Columns) -> dict[str, list[Path]]:
    """Data files by ending. Images are data where texts of the same name lie beside them."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    images = [path for path in paths if path.suffix.lower().removeprefix(".") in IMAGE_ENDINGS]
    stems = {(path.parent, path.stem) for path in images}
    if any(texts_beside(path, columns) for path in images):
        kinds[images[0].suffix] = images
    else:
        stems = set()
        for path in images:
            listing.pass_over(path, "images without texts of the same name; those that data files name are read")
    for path in paths:
        kind = path.suffix.lower()
        if kind.removeprefix(".") in IMAGE_ENDINGS or (kind not in MANY and (path.parent, path.stem) in stems):
            continue
        if kind == ".json" and not is_array(path):
            listing.pass_over(path, "JSON files that hold no array")
        elif kind in KINDS:
            kinds[kind].append(path)
        else:
            listing.pass_over(path, _why_not(path))
    return kinds


def _drop_sidecars(listing: Listing, kinds: dict[str, list[Path]], columns: Columns) -> None:
    """Keep the kinds that have images, if any has."""
    without = [kind for kind, files in kinds.items() if not any(has_images(file, columns) for file in files)]
    if len(without) < len(kinds):
        for kind in without:
            for path in kinds.pop(kind):
                listing.pass_over(path, f"{KINDS[kind]} without images, beside data with images")


def _walk(listing: Listing, pattern: Sequence[str], output: Path | None) -> Iterator[Path]:
    """The files that match; folders that are links come last, so that a link hides no folder that lies below."""
    folders, links, seen = [listing.folder], list[Path](), set()
    if output and os.path.exists(output):  # Path.exists raises where there are no rights
        seen.add(_identity(output))
    while folders or links:
        folder = (folders or links).pop(0)
        try:
            if (identity := _identity(folder)) in seen:
                listing.pass_over(folder, "links to folders that are read already, or are `output`")
                continue
            seen.add(identity)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            listing.pass_over(folder, f"folders that cannot be read ({error.strerror})")
            continue
        for entry in entries:
            path = folder / entry.name
            try:
                entry.stat()
            except OSError as error:
                kind = "links that lead nowhere" if entry.is_symlink() else "files that cannot be reached"
                listing.pass_over(path, f"{kind} ({error.strerror})")
                continue
            if entry.name.startswith("."):
                listing.pass_over(path, "hidden files or folders")
            elif entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif not entry.is_file():
                listing.pass_over(path, "special files")
            elif _matches(path.relative_to(listing.folder).parts, pattern):
                yield path
            else:
                listing.pass_over(path, f"files that do not match files={'/'.join(pattern)}")


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """As Path.glob does it, but an ending in capitals matches as well."""
    if not pattern or not parts:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    stem, dot, ending = parts[0].rpartition(".")
    names = parts[0], stem + dot + ending.lower()
    return any(fnmatchcase(name, pattern[0]) for name in names) and _matches(parts[1:], pattern[1:])


def _why_not(path: Path) -> str:
    kind = path.suffix.lower()
    if kind in COMPRESSED:
        before = path.with_suffix("").suffix.lower()
        return f"compressed files (*{before if before in KINDS or before == '.tar' else ''}{kind}), unpack them first"
    if kind == ".arrow":
        return "Arrow files; a data set of save_to_disk has them: write it with to_parquet"
    return f"files of an unknown kind (*{kind})" if kind else "files without an ending"
