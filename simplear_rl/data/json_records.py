"""JSON files, an entry at a time."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from simplear_rl.data.pair_forms import is_ranked

WHITESPACE = " \t\r\n"
ELEMENT = re.compile(
    r"(?:\xef\xbb\xbf)?[ \t\r\n]*[\[,]?[ \t\r\n]*(?=[^ \t\r\n\]])"
)  # what parts it from the one before


def is_array(path: Path) -> bool:
    """Whether a JSON file begins as an array does, or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError:
        return True


def records(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The lines of a file, or the elements of the array in a JSON file, from a byte on.

    Records follow each other without a gap: an element begins with what parts it from the one before. What is no JSON
    at the end of an array is one record. Empty lines at the end are none.
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
                end, size = after, 2**16
            text = text[end:]
        if text.strip(WHITESPACE + "]"):
            yield text.encode("latin-1")


def _without_empty_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    empty = []
    for line in lines:
        empty.append(line)
        if line.strip():
            yield from empty
            empty.clear()


def parse(path: Path, record: bytes) -> Any:
    """What a record of `records` holds. Raises ValueError or RecursionError."""
    if path.suffix.lower() == ".json" and (before := ELEMENT.match(record.decode("latin-1"))):
        record = record[before.end() :]
    return json.loads(record)


def begins_ranking(path: Path) -> bool:
    """Whether the first entry of a JSON file is an image of several that are ranked."""
    try:
        return is_ranked(parse(path, next(records(path), b"{}")))
    except (OSError, ValueError, RecursionError):
        return False
