"""Prompt files: text with a prompt a line, or JSON lines, CSV, TSV and Parquet that are read by column."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from simplear_rl.characters import BYTE_ORDER_MARK, tidy_prompt
from simplear_rl.data.order import items_of_step, other_items
from simplear_rl.errors import UserError
from simplear_rl.files import parse_json, repeated
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.vocabulary import PromptEncoder

COLUMNS = ("prompt", "text", "caption")  # the first of these that a file has
WEIGHT = "weight"
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
KINDS = (".txt", ".jsonl", PARQUET, *DELIMITERS)
OTHERS = (".json", ".md", ".gz", ".yaml", ".zip")  # endings of files that hold no prompts as they are
JSON_STARTS = ('{"', "{'", "[{", '["', "['")  # of Python's dictionaries and lists too
SHOWN = 20  # bad lines in a message


@dataclass(frozen=True)
class PromptRow:
    """A row of a prompts file."""

    text: str
    columns: dict[str, Any] = field(default_factory=dict)  # all but the prompt and the weight; None where it lacks one
    weight: float = 1.0  # how often it is drawn, in proportion to the others

    def prompt(self, index: int) -> Prompt:
        """The row as prompt `index` of a step."""
        return Prompt(index, self.text, self.columns)


Entry = Mapping[str, Any] | ValueError  # what a line holds, by column, or what is wrong with it


def prompts_of(named: str, encode: PromptEncoder) -> list[str]:
    """What `named` names: the prompts of a file or of standard input (-), or itself, as a prompt.

    Raises:
        UserError: it reads like the path of a file, and none is there; the prompt is bad; see `read_rows`.
    """
    path = os.path.expanduser(named)
    if named == "-":
        return read_prompts(Path("/dev/stdin"), encode)
    is_folder, is_word = os.path.isdir(path), len(named.split()) == 1
    if os.path.exists(path) and not is_folder:  # a pipe too
        return read_prompts(Path(path), encode)
    like_path = "/" in path or named.lower().endswith(KINDS + OTHERS)
    # A prompt may hold a `/`, and a folder may be called as a prompt is, as --output is by some.
    if named.lower().endswith(KINDS) or (like_path and (is_folder or is_word)):
        raise UserError(
            f"prompts: {named}: {'a folder, not a file' if is_folder else 'file not found'}; expected a file with a "
            "prompt a line, .jsonl, .csv, .tsv or .parquet, - for standard input, or a prompt of more than one word"
        )
    try:
        return [check_prompt(named, encode)]
    except ValueError as error:
        raise UserError(f"prompts: {error}") from None


def read_prompts(file: Path, encode: PromptEncoder) -> list[str]:
    """The prompts of `read_rows`."""
    return [row.text for row in read_rows(file, encode)]


def read_rows(file: Path, encode: PromptEncoder | None = None) -> list[PromptRow]:
    """All rows of a file, in order; its name says of which kind it is.

    JSON lines, CSV, TSV and Parquet have the prompt in the column `prompt`, `text` or `caption`. Empty lines at the end
    are passed over.

    Raises:
        UserError: unreadable file, no prompts, no such column, no weight above 0; or bad lines, all of them with their
            numbers: empty, not UTF-8, with control characters, JSON in a text file, a key that comes twice, a weight
            that is none, or refused by `encode`, if there is one, as too long.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    kind = file.suffix.lower()
    if kind == ".json":
        raise UserError(f"{file}: JSON as a whole; write an object with the text `prompt` a line, and name it .jsonl")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{file}: UTF-16; save it as UTF-8")
    if kind in DELIMITERS:
        found = list(_table(file, content))
    elif kind == PARQUET:
        found = list(_parquet(file, content))
    else:
        found = list(_json_lines(content) if kind == ".jsonl" else _text(file, content))
    if not found:
        raise UserError(f"{file}: no prompts in it")
    rows, bad = [], []
    for number, entry in found:
        try:
            rows.append(_row(entry, encode))
        except ValueError as error:
            bad.append(f"{file}, {'row' if kind == PARQUET else 'line'} {number}: {error}")
    if bad:
        rest = [f"{file}: {len(bad) - SHOWN} more bad lines"] if len(bad) > SHOWN else []
        raise UserError("\n".join(bad[:SHOWN] + rest))
    names = dict.fromkeys(name for row in rows for name in row.columns)  # lines of JSON may lack some
    rows = [replace(row, columns=dict.fromkeys(names) | row.columns) for row in rows]
    if not any(row.weight for row in rows):
        raise UserError(f"{file}: the column `{WEIGHT}` is 0 in every row, so that no prompt would be drawn")
    return rows


def _row(entry: Entry, encode: PromptEncoder | None) -> PromptRow:
    """Raises ValueError."""
    if isinstance(entry, ValueError):
        raise entry
    name = next((name for name in COLUMNS if name in entry), None)
    if name is None or not isinstance(entry[name], str):
        raise ValueError(f"expected an object with the text {' or '.join(COLUMNS)}, found {str(dict(entry))[:80]}")
    columns = {key: value for key, value in entry.items() if key not in (name, WEIGHT)}
    return PromptRow(check_prompt(entry[name], encode), columns, _weight(entry.get(WEIGHT, 1.0)))


def _weight(value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{WEIGHT}: expected a number of 0 or more, found {value!r}")
    return weight


def check_prompt(text: str, encode: PromptEncoder | None = None) -> str:
    """A prompt without byte order marks and with plain spaces. Raises ValueError."""
    prompt = tidy_prompt(text)
    if not prompt:
        raise ValueError("empty prompt")
    if encode:
        encode(prompt)
    return prompt


def _lines(content: bytes) -> Iterator[tuple[int, str | ValueError]]:
    """Numbered lines, and an error for each one that is not UTF-8."""
    for number, line in enumerate(content.rstrip().split(b"\n") if content.strip() else [], start=1):
        try:
            yield number, line.decode().strip().strip(BYTE_ORDER_MARK)
        except UnicodeDecodeError:
            yield number, ValueError(f"not UTF-8: {line[:80]!r}")


def _text(file: Path, content: bytes) -> Iterator[tuple[int, Entry]]:
    """The lines of a text file. Raises UserError if the first one is the header of a table.

    A tab is a space, unless every line has one: then it is a table without a header, and refused line by line.
    """
    lines, is_json = list(_lines(content)), _is_json(content.decode(errors="replace").strip().strip(BYTE_ORDER_MARK))
    is_table = all(isinstance(line, str) and "\t" in line for _, line in lines)
    for number, line in lines:
        if number == 1 and isinstance(line, str) and _is_header(line, [other for _, other in lines]):
            raise UserError(f"{file}: its first line {line!r} is the header of a table; name it .csv or .tsv")
        if (number == 1 and is_json) or (isinstance(line, str) and _is_json(line)):
            line = ValueError("JSON; name the file .jsonl, with an object a line")
        if isinstance(line, str):
            yield number, {"prompt": line if is_table else line.replace("\t", " ")}
        else:
            yield number, line


def _is_header(line: str, lines: list[str | ValueError]) -> bool:
    """Whether a line is a row of single words, one the name of a column with prompts, and no line has fewer fields."""
    delimiter = "\t" if "\t" in line else ","
    fields = [field.strip(' "').casefold() for field in line.split(delimiter)]
    as_many = all(isinstance(other, str) and len(other.split(delimiter)) >= len(fields) for other in lines)
    return as_many and all(len(field.split()) == 1 for field in fields) and any(field in COLUMNS for field in fields)


def _is_json(text: str) -> bool:
    """Whether a line, or a file, holds an object or an array, or a line begins one; `[red] circle` is a prompt."""
    if not text.startswith(("{", "[")):
        return False
    try:
        return text in "[{" or text.startswith(JSON_STARTS) or isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _json_lines(content: bytes) -> Iterator[tuple[int, Entry]]:
    for number, line in _lines(content):
        try:
            entry = parse_json(line) if isinstance(line, str) else line
        except ValueError as error:
            entry = error
        if not isinstance(entry, dict | ValueError):
            entry = ValueError(f"expected an object with the text {' or '.join(COLUMNS)}, found {str(line)[:80]}")
        yield number, _in_one_line(entry)


def _parquet(file: Path, content: bytes) -> Iterator[tuple[int, Entry]]:
    """Raises UserError."""
    try:
        table = parquet.read_table(io.BytesIO(content))
        table.validate(full=True)  # text is UTF-8, for one
        rows = table.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file: {error}") from error
    if not any(name in table.column_names for name in COLUMNS):
        found = ", ".join(table.column_names) or "none"
        raise UserError(f"{file}: expected a column {' or '.join(COLUMNS)}, found {found}")
    for number, row in enumerate(rows, start=1):
        yield number, _in_one_line(row)


def _table(file: Path, content: bytes) -> Iterator[tuple[int, Entry]]:
    """The prompts of CSV or TSV, and the line on which the row of each begins. Raises UserError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8: {content[error.start : error.start + 40]!r}") from error
    lines = text.splitlines(keepends=True)
    while lines and not lines[-1].strip():
        lines.pop()
    reader = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=DELIMITERS[file.suffix.lower()], strict=True)
    number = 1
    try:
        header = [name.strip().casefold() for name in next(reader, [])]
        if not any(name in header for name in COLUMNS):
            raise UserError(f"{file}: expected a column {' or '.join(COLUMNS)}, found {', '.join(header) or 'none'}")
        if twice := repeated(filter(None, header)):
            raise UserError(f"{file}: two columns are called {' and '.join(twice)}")
        number = reader.line_num + 1
        for row in reader:
            if len(row) == len(header):
                yield number, _in_one_line(dict(zip(header, row, strict=True)))
            else:
                yield number, ValueError(f"expected {len(header)} fields, found {len(row)}")
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {number}: not {file.suffix[1:].upper()}: {error}") from error


def _in_one_line(entry: Entry) -> Entry:
    """The prompt of a column may hold line breaks and tabs: they become spaces."""
    name = next((name for name in COLUMNS if name in entry), None) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or name is None or not isinstance(entry[name], str):
        return entry
    text = entry[name].replace("\r\n", " ").translate({ord(character): " " for character in "\t\n\r"})
    return {**entry, name: text}


def prompts_of_step(prompts: list[PromptRow], step: int, per_step: int, seed: int) -> list[Prompt]:
    """The prompts of training step `step` (from 1)."""
    weights = [row.weight for row in prompts]
    items = items_of_step(step - 1, per_step, weights, seed)
    return [prompts[item].prompt(i) for i, item in enumerate(items)]


def further_prompts(prompts: list[PromptRow], draw: Draw) -> Iterator[Prompt]:
    """The prompts that refill the groups of a step: all but its own, each once; they are counted on from those."""
    weights = [row.weight for row in prompts]
    for i, item in enumerate(other_items(draw.step - 1, len(draw.prompts), weights, draw.seed)):
        yield prompts[item].prompt(len(draw.prompts) + i)
