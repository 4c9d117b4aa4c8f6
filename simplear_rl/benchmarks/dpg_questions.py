"""DPG-Bench's prompts and questions, as its authors publish them."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simplear_rl.benchmarks.benchmark import read_text
from simplear_rl.errors import UserError
from simplear_rl.files import parse_json, repeated

PUBLISHED = "https://github.com/TencentQQGYLab/ELLA (dpg_bench)"
Rules = Literal["corrected", "official"]
COLUMNS = (
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
)
ROOT = 0  # as a dependency: none


@dataclass(frozen=True)
class Question:
    """One yes/no question about a prompt's images."""

    id: int  # proposition_id, from 1
    text: str
    parents: tuple[int, ...]  # without the root
    broad: str  # category, such as "entity"
    detailed: str  # with its broad category: "entity - whole"


def read_dpg_prompts(source: Path) -> dict[str, str]:
    """The prompts by item_id, in one of three forms.

    JSON Lines of `item_id` and `text`, both text, in order; the published folder of prompts, a file ITEM_ID.txt each,
    by name; or the published questions, a CSV file with a prompt's `text` in one of its rows, in order.

    Raises:
        UserError: unreadable or empty file or folder, or a bad line (with its number).
    """
    if source.is_dir():
        return _prompts_of_folder(source)
    if source.suffix.lower() == ".csv":
        return _prompts_of_questions(source)
    return _prompts_of_json_lines(source)


def _prompts_of_folder(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.txt"))
    prompts = {file.stem: read_text(file, PUBLISHED).strip() for file in files}
    if bad := [item for item, text in prompts.items() if not text]:
        raise UserError(f"{folder}: no prompt in {', '.join(f'{item}.txt' for item in bad)}")
    if not prompts:
        raise UserError(f"{folder}: no prompts (*.txt) there; they are published at {PUBLISHED}")
    return prompts


def _prompts_of_questions(file: Path) -> dict[str, str]:
    prompts: dict[str, str] = {}
    for place, row in _read_rows(file):
        if isinstance(row, str):
            raise UserError(f"{file}, {place}: {row}")
        item, text = row["item_id"].strip(), row["text"].strip()
        known = prompts.get(item) or text
        if text and text != known:
            raise UserError(f"{file}, {place}: item {item} has two texts")
        prompts[item] = known
    if bad := [item for item, text in prompts.items() if not text]:
        raise UserError(f"{file}: no text for {', '.join(bad)}")
    if not prompts:
        raise UserError(f"{file}: no prompts in it")
    return prompts


def _prompts_of_json_lines(file: Path) -> dict[str, str]:
    prompts: dict[str, str] = {}
    # Not splitlines(): JSON text may hold other line separators.
    for number, line in enumerate(read_text(file, PUBLISHED).rstrip("\n").split("\n"), start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: {error}") from error
        item, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("item_id", "text"))
        if not (isinstance(item, str) and item.strip() and isinstance(text, str) and text.strip()):
            raise UserError(f"{file}, line {number}: expected item_id and text, found {line[:200]}")
        if item in prompts:
            raise UserError(f"{file}, line {number}: item_id {item} stands there twice")
        prompts[item] = text
    return prompts


def read_questions(file: Path, prompts: Mapping[str, str], rules: Rules = "corrected") -> dict[str, list[Question]]:
    """The questions of each prompt (keys: item_id), in the order of the file; those of other prompts are only checked.

    By the official rules questions may refer to questions that are unknown or come later (so do all cycles), repeat an
    id (the later row replaces the earlier), and be absent, as in the script: it fails or goes on when it scores. A
    prompt without questions then has an empty list.

    Raises:
        UserError: unreadable file, missing columns, or bad rows: all of them, each with its line.
    """
    lines = list(_read_rows(file))
    questions: dict[str, dict[int, tuple[str, Question]]] = {}
    bad: list[str] = []
    previous = None
    for place, row in lines[1:] if rules == "official" else lines:
        question = row if isinstance(row, str) else _question(row, rules)
        if isinstance(row, str) or isinstance(question, str):
            bad.append(f"{place}: {question}")
            continue
        item = row["item_id"].strip()
        if rules == "official" and item != previous:
            questions[item] = {}  # the script starts a prompt anew where its rows are not together
        previous = item
        known = questions.setdefault(item, {})
        if rules == "corrected" and question.id in known:
            bad.append(f"{place}: item {item} has two questions {question.id}")
            continue
        known[question.id] = (place, question)
    if rules == "corrected":
        for item, known in questions.items():
            bad += _bad_dependencies(item, known)
        bad += [f"item {item}: a prompt without questions" for item in prompts if item not in questions]
    if bad:
        raise UserError("\n".join([f"{file}: {len(bad)} bad rows or prompts", *bad]))
    return {item: [question for _, question in questions.get(item, {}).values()] for item in prompts}


def _read_rows(file: Path) -> Iterator[tuple[str, dict[str, str] | str]]:
    """The rows, or what is wrong with one, and the line on which each begins: quoted text may hold line breaks."""
    reader = csv.reader(io.StringIO(read_text(file, PUBLISHED)), strict=True)
    begins, header = 1, None
    try:
        for fields in reader:
            place, begins = f"line {begins}", reader.line_num + 1
            if header is None:
                header = fields
                if missing := [column for column in COLUMNS if column not in header]:
                    raise UserError(f"{file}: expected columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}")
                if twice := repeated(filter(None, header)):
                    raise UserError(f"{file}: two columns are called {' and '.join(twice)}")
            elif fields and len(fields) != len(header):
                yield place, f"expected {len(header)} fields, found {len(fields)}"
            elif fields:
                yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{file}, line {begins}: not CSV: {error}") from error
    if header is None:
        raise UserError(f"{file}: empty")


def _question(row: dict[str, str], rules: Rules) -> Question | str:
    """The question of a row, or what is wrong with the row."""
    if not row["item_id"].strip():
        return "blank item_id"
    if not row["question_natural_language"].strip():
        return "blank question_natural_language"
    try:
        number = int(row["proposition_id"])
    except ValueError:
        return f"proposition_id: expected a number from 1, found {row['proposition_id']!r}"
    if number <= ROOT:
        return f"proposition_id: expected a number from 1, found {number}"
    try:
        parents = tuple(parent for parent in map(int, row["dependency"].split(",")) if parent != ROOT)
    except ValueError:
        return f"dependency: expected numbers separated by commas, found {row['dependency']!r}"
    if rules == "official":  # the script reads both categories from the tuple: "entity - whole (cat)"
        detailed = row["tuple"].split("(")[0].strip()
        broad = detailed.split("-")[0].strip()
    else:
        broad = row["category_broad"].strip()
        detailed = f"{broad} - {row['category_detailed'].strip()}".strip()
    if not broad:
        return f"blank {'tuple' if rules == 'official' else 'category_broad'}"
    return Question(number, row["question_natural_language"].strip(), parents, broad, detailed)


def _bad_dependencies(item: str, known: dict[int, tuple[str, Question]]) -> Iterator[str]:
    seen: set[int] = set()
    for number, (place, question) in known.items():
        for parent in question.parents:
            if parent not in known:
                yield f"{place}: question {number} of item {item} depends on question {parent}, which is not there"
            elif parent not in seen:
                yield (
                    f"{place}: question {number} of item {item} depends on question {parent}, which does not come "
                    "before it (a cycle, or rows out of order)"
                )
        seen.add(number)
