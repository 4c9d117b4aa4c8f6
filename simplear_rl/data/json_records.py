"""JSON files, an entry at a time."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from simplear_rl.data.pair_forms import is_ranked
from simplear_rl.files import parse_json

BEFORE = r"(?:\xef\xbb\xbf)?+[ \t\r\n]*+[\[,]?+[ \t\r\n]*+"  # what parts an element from the one before
ELEMENT = re.compile(BEFORE + r"(?=[^ \t\r\n\]])")
END = re.compile(BEFORE + r"\][ \t\r\n]*")  # a comma before it costs no element


def is_array(path: Path) -> bool:
    """Whether a JSON file begins as an array does, or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError:
        return True


def records(path: Path, offset: int = 0, number: int = 1) -> Iterator[bytes]:
    """The lines of a file, or the elements of the array in a JSON file, from a byte on, with which `number` begins.

    Records follow each other without a gap: an element begins with what parts it from the one before. Empty lines at
    the end are none.

    Raises:
        OSError: the file cannot be read, or its array is damaged: where the next element begins is then unknown.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if path.suffix.lower() != ".json":
            yield from _without_empty_end(file)
            return
        decoder, text, size = json.JSONDecoder(), "", 2**16
        while chunk := file.read(size):
            text += chunk.decode("latin-1")  # a character is a byte, and what JSON is built of stays as it is
            size, end = 2 * size, 0
            while match := ELEMENT.match(text, end):
                try:
                    after = decoder.raw_decode(text, match.end())[1]
                except (ValueError, RecursionError):
                    break
                if after == len(text):  # a number could go on
                    break
                yield text[end:after].encode("latin-1")
                end, size, number = after, 2**16, number + 1
            text, offset = text[end:], offset + end
        if not END.fullmatch(text):
            place, reason = _damage(text)
            raise OSError(f"damaged JSON array, element {number}, byte {offset + place}: {reason}")


def _damage(rest: str) -> tuple[int, str]:
    """Where an array is damaged, and how, from what is left when its elements have been read."""
    if end := END.match(rest):
        return end.end(), "expected the end of the file, found more behind the array"
    if start := ELEMENT.match(rest):
        try:
            json.JSONDecoder().raw_decode(rest, start.end())
        except json.JSONDecodeError as error:
            return error.pos, error.msg
        except (ValueError, RecursionError) as error:
            return start.end(), str(error)
    return len(rest), "expected `]`, found the end of the file"


def _without_empty_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    empty = []
    for line in lines:
        empty.append(line)
        if line.strip():
            yield from empty
            empty.clear()


def parse(path: Path, record: bytes) -> Any:
    """What a record of `records` holds. Raises ValueError, see `parse_json`."""
    if path.suffix.lower() == ".json" and (before := ELEMENT.match(record.decode("latin-1"))):
        record = record[before.end() :]
    return parse_json(record)


def read_object(path: Path, record: bytes) -> dict[str, Any] | str:
    """The object that a record of `records` is, or why it is none."""
    try:
        entry = parse(path, record)
    except ValueError as error:
        return str(error)
    return entry if isinstance(entry, dict) else "expected an object with the path `image`"


def begins_ranking(path: Path) -> bool:
    """Whether the first entry of a JSON file is an image of several that are ranked."""
    try:
        return is_ranked(parse(path, next(records(path), b"{}")))
    except (OSError, ValueError):
        return False
