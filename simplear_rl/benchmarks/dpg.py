"""The DPG-Bench rules (Hu et al., arXiv 2403.05135; compute_dpg_bench.py of TencentQQGYLab/ELLA), without any model.

A prompt has yes/no questions, and a question may depend on others: whether the cat is black counts only if there is a
cat. A visual judge (`vqa.py`) answers them for each image. There are two sets of rules:

- `corrected`, the default: the whole file of questions, and category scores from every image after the dependencies.
- `official`: what the published script computes. It skips the file's first question; its category scores are those of
  a prompt's last image before the dependencies; and a prompt whose scoring raises an exception is left out of every
  score. Two such exceptions follow from questions and answers and are modelled: a prompt without questions, and a
  question whose parents, looked up in order until one counts 0, include one that is not there (the skipped question,
  for instance). Such a prompt's rows say why in `dropped`. Anything else that fails ends the run.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from simplear_rl.benchmarks.benchmark import read_text
from simplear_rl.errors import UserError
from simplear_rl.vision.vqa import JUDGES_DIFFER, VisualJudge

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
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON: {error}") from error
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


def apply_dependencies(questions: Sequence[Question], yes: Mapping[int, bool]) -> dict[int, bool]:
    """Which questions count, by id: the answer is yes, and so is that of every parent, and of theirs.

    In the order of the file and in place, so that a 0 propagates. Raises KeyError for a parent that is not there,
    unless an earlier parent counts 0.
    """
    counts = {question.id: yes[question.id] for question in questions}
    for question in questions:
        if not all(counts[parent] for parent in question.parents):
            counts[question.id] = False
    return counts


def judge(
    item_id: str,
    prompt: str,
    questions: Sequence[Question],
    images: Mapping[str, np.ndarray],
    visual_judge: VisualJudge,
) -> list[dict]:
    """Ask a prompt's questions about its images (uint8 [H, W, 3] by file name), all at once.

    Returns:
        One row per image, ready for JSON: filename, item_id, prompt, answers, score (mean over the questions, 0 to 1).
        `answers` has a dict per question: id, question, broad, detailed, answer, zeroed (it was "yes" and does not
        count, for the sake of a parent). Only the answer "yes" counts, spelled exactly so. Where the official script
        would raise an exception (see above), score is None and dropped says why.
    """
    asked = [(image, question.text) for image in images.values() for question in questions]
    replies = visual_judge.answer([image for image, _ in asked], [text for _, text in asked])
    table = np.array(replies, dtype=object).reshape(len(images), len(questions))  # refuses another number of replies
    return [
        {"filename": filename, "item_id": item_id, "prompt": prompt} | _score_image(questions, answers)
        for filename, answers in zip(images, table.tolist(), strict=True)
    ]


def _score_image(questions: Sequence[Question], answers: Sequence[str]) -> dict:
    yes = {question.id: answer == "yes" for question, answer in zip(questions, answers, strict=True)}
    dropped = None if questions else "no questions"
    try:
        counts = apply_dependencies(questions, yes)
    except KeyError as error:
        counts, dropped = yes, f"a question depends on question {error}, which is not there"
    entries = [
        {
            "id": question.id,
            "question": question.text,
            "broad": question.broad,
            "detailed": question.detailed,
            "answer": answer,
            "zeroed": yes[question.id] and not counts[question.id],
        }
        for question, answer in zip(questions, answers, strict=True)
    ]
    if dropped:
        return {"answers": entries, "score": None, "dropped": dropped}
    return {"answers": entries, "score": sum(counts.values()) / len(counts)}


def dropped_prompts(results: Sequence[dict]) -> dict[str, str]:
    """The prompts that the official rules leave out (item_id), and why."""
    return {row["item_id"]: row["dropped"] for row in results if "dropped" in row}


def scores(results: Sequence[dict], rules: Rules = "corrected") -> dict[str, float]:
    """Scores from 0 to 100: "total", every broad category ("entity") and every detailed one ("entity - whole").

    The total is the mean over prompts of the mean over a prompt's images; a category's score is the mean over its
    questions, of all images, after the dependencies. By the official rules: of a prompt's last image in `results`,
    before the dependencies. `results` are rows of `judge`. Raises ValueError if none of them has a score.
    """
    names, sums, counts = _tables(results, rules)
    return dict(zip(names, (100 * sums.sum(axis=1) / counts.sum(axis=1)).tolist(), strict=True))


def confidence_intervals(
    results: Sequence[dict], seed: int, rules: Rules = "corrected", resamples: int = 2000
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `scores`: prompts are resampled, with all their images.

    A category's interval is over those resamples that have a question of it.
    """
    names, sums, counts = _tables(results, rules)
    prompts = sums.shape[1]
    times = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a resample lacks a category
        samples = 100 * (sums @ times.T) / (counts @ times.T)
    bounds = np.nanquantile(samples, [0.025, 0.975], axis=1).T
    return {name: (float(low), float(high)) for name, (low, high) in zip(names, bounds, strict=True)}


def _tables(results: Sequence[dict], rules: Rules) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the scores, and for each of them and each prompt sum and number of what it is the mean of."""
    dropped = dropped_prompts(results)
    if dropped and rules == "corrected":
        raise ValueError(f"the corrected rules drop no prompt, these rows come from others: {', '.join(dropped)}")
    images: dict[str, list[dict]] = {}
    for row in results:
        if row["item_id"] not in dropped:
            images.setdefault(row["item_id"], []).append(row)
    if not images:
        raise ValueError("no prompt has a score")
    cells: dict[str, np.ndarray] = {"total": np.zeros((2, len(images)))}
    for i, rows in enumerate(images.values()):
        cells["total"][:, i] = np.mean([row["score"] for row in rows]), 1
        for row in rows[-1:] if rules == "official" else rows:
            for entry in row["answers"]:
                counts = entry["answer"] == "yes" and (rules == "official" or not entry["zeroed"])
                for name in {entry["broad"], entry["detailed"]}:
                    cells.setdefault(name, np.zeros((2, len(images))))[:, i] += counts, 1
    names = ["total", *sorted({name for name in cells if name != "total"})]
    sums, counts = np.stack([cells[name] for name in names], axis=1)
    return names, sums, counts


def summary(results: Sequence[dict], judge_name: str, seed: int, rules: Rules = "corrected") -> dict:
    """What scores.json holds: the scores, their intervals, and what they depend on (rules, judge, prompts left out)."""
    return {
        "images": len(results),
        "prompts": len({row["item_id"] for row in results}),
        "rules": rules,
        "judge": judge_name,
        "note": JUDGES_DIFFER,
        "dropped": dropped_prompts(results),
        "scores": scores(results, rules),
        "confidence_intervals": confidence_intervals(results, seed, rules),
    }


def grid(images: np.ndarray) -> np.ndarray:
    """Four images uint8 [4, H, W, 3] as the one [2H, 2W, 3] that the official script reads: row by row, no padding."""
    (top_left, top_right, bottom_left, bottom_right) = images
    return np.block([[[top_left], [top_right]], [[bottom_left], [bottom_right]]])


def split_grid(image: Image.Image, size: int) -> np.ndarray:
    """The images uint8 [4, size, size, 3] of a 2x2 grid: top left, top right, bottom left, bottom right.

    Raises:
        UserError: the grid is not 2 size x 2 size pixels. With padding every crop but the first would be shifted.
    """
    if image.size != (2 * size, 2 * size):
        width, height = image.size
        padding, rest = divmod(width - 2 * size, 3)
        hint = f": padded by {padding} pixels? Save it without" if width == height and padding > 0 and not rest else ""
        raise UserError(
            f"{getattr(image, 'filename', 'grid')}: expected {2 * size}x{2 * size} pixels, four images of "
            f"{size}x{size}, found {width}x{height}{hint}"
        )
    pixels = np.asarray(image.convert("RGB"))
    return pixels.reshape(2, size, 2, size, 3).swapaxes(1, 2).reshape(4, size, size, 3)
