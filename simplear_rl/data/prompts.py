"""Prompt files, UTF-8: text with a prompt a line, or JSON lines, CSV and TSV that are read by column."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from simplear_rl.characters import BYTE_ORDER_MARK, tidy_prompt
from simplear_rl.data.order import items_of_step, other_items
from simplear_rl.errors import UserError
from simplear_rl.policy.rollouts import Draw, Prompt
from simplear_rl.policy.vocabulary import PromptEncoder

COLUMNS = ("prompt", "text", "caption")  # the first of these that a file has
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".txt", ".jsonl", *DELIMITERS)
SHOWN = 20  # bad lines in a message


def read_prompts(file: Path, encode: PromptEncoder) -> list[str]:
    """All prompts of a file, in order; its name says of which kind it is.

    JSON lines, CSV and TSV are read by the column `prompt`, `text` or `caption`. Empty lines at the end are passed
    over.

    Raises:
        UserError: unreadable file, no prompts, no such column; or bad lines, all of them with their numbers: empty,
            not UTF-8, with control characters, JSON in a text file, or refused by `encode` as too long.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{file}: UTF-16; save it as UTF-8")
    if file.suffix.lower() in DELIMITERS:
        found = list(_table(file, content))
    elif file.suffix.lower() == ".jsonl":
        found = list(_json_lines(content))
    else:
        found = list(_text(file, content))
    if not found:
        raise UserError(f"{file}: no prompts in it")
    prompts, bad = [], []
    for number, text in found:
        try:
            prompts.append(check_prompt(text, encode))
        except ValueError as error:
            bad.append(f"{file}, line {number}: {error}")
    if bad:
        rest = [f"{file}: {len(bad) - SHOWN} more bad lines"] if len(bad) > SHOWN else []
        raise UserError("\n".join(bad[:SHOWN] + rest))
    return prompts


def check_prompt(text: str | ValueError, encode: PromptEncoder) -> str:
    """A prompt without byte order marks and with plain spaces. Raises ValueError, or the one that it is given."""
    if isinstance(text, ValueError):
        raise text
    prompt = tidy_prompt(text)
    if not prompt:
        raise UserError("empty prompt")
    encode(prompt)
    return prompt


def _lines(content: bytes) -> Iterator[tuple[int, str | ValueError]]:
    """Numbered lines, and an error for each one that is not UTF-8."""
    for number, line in enumerate(content.rstrip().split(b"\n") if content.strip() else [], start=1):
        try:
            yield number, line.decode().strip().strip(BYTE_ORDER_MARK)
        except UnicodeDecodeError:
            yield number, ValueError(f"not UTF-8: {line[:80]!r}")


def _text(file: Path, content: bytes) -> Iterator[tuple[int, str | ValueError]]:
    """The lines of a text file. Raises UserError if the first one is the header of a table."""
    for number, line in _lines(content):
        if number == 1 and isinstance(line, str) and _is_header(line):
            raise UserError(f"{file}: its first line {line!r} is the header of a table; name it .csv or .tsv")
        yield number, ValueError("JSON; name the file .jsonl, with an object a line") if _is_json(line) else line


def _is_header(line: str) -> bool:
    """Whether a line is a row of single words, one of them the name of a column with prompts."""
    fields = [field.strip(' "').casefold() for field in line.split("\t" if "\t" in line else ",")]
    return all(len(field.split()) == 1 for field in fields) and any(field in COLUMNS for field in fields)


def _is_json(line: str | ValueError) -> bool:
    if isinstance(line, ValueError) or not line.startswith(("{", "[")):
        return False
    try:
        return line in "[{" or isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _json_lines(content: bytes) -> Iterator[tuple[int, str | ValueError]]:
    for number, line in _lines(content):
        try:
            entry = json.loads(line) if isinstance(line, str) else line
        except (ValueError, RecursionError) as error:
            entry = ValueError(f"not JSON: {error}")
        values = [entry[name] for name in COLUMNS if name in entry] if isinstance(entry, dict) else []
        if isinstance(entry, ValueError):
            yield number, entry
        elif values and isinstance(values[0], str):
            yield number, _in_one_line(values[0])
        else:
            yield number, ValueError(f"expected an object with the text {' or '.join(COLUMNS)}, found {str(line)[:80]}")


def _table(file: Path, content: bytes) -> Iterator[tuple[int, str | ValueError]]:
    """The prompts of CSV or TSV, and the line on which the row of each begins. Raises UserError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8: {content[error.start : error.start + 40]!r}") from error
    reader = csv.reader(io.StringIO(text.rstrip(), newline=""), delimiter=DELIMITERS[file.suffix.lower()], strict=True)
    number = 1
    try:
        header = [name.strip().casefold() for name in next(reader, [])]
        name = next((name for name in COLUMNS if name in header), None)
        if name is None:
            raise UserError(f"{file}: expected a column {' or '.join(COLUMNS)}, found {', '.join(header) or 'none'}")
        number = reader.line_num + 1
        for row in reader:
            if len(row) == len(header):
                yield number, _in_one_line(row[header.index(name)])
            else:
                yield number, ValueError(f"expected {len(header)} fields, found {len(row)}")
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {number}: not {file.suffix[1:].upper()}: {error}") from error


def _in_one_line(text: str) -> str:
    """The text of a column, which may hold line breaks and tabs: spaces in a prompt."""
    return text.replace("\r\n", " ").translate({ord(character): " " for character in "\t\n\r"})


def prompts_of_step(prompts: list[str], step: int, per_step: int, seed: int) -> list[Prompt]:
    """The prompts of training step `step` (from 1)."""
    return [Prompt(i, prompts[item]) for i, item in enumerate(items_of_step(step - 1, per_step, len(prompts), seed))]


def further_prompts(prompts: list[str], draw: Draw) -> Iterator[Prompt]:
    """The prompts that refill the groups of a step: all but its own, each once; they are counted on from those."""
    for i, item in enumerate(other_items(draw.step - 1, len(draw.prompts), len(prompts), draw.seed)):
        yield Prompt(len(draw.prompts) + i, prompts[item])
