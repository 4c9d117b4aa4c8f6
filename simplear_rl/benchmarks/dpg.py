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

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from simplear_rl.benchmarks.dpg_questions import Question, Rules
from simplear_rl.benchmarks.intervals import bootstrap_intervals
from simplear_rl.errors import UserError
from simplear_rl.vision.judges import JUDGES_DIFFER, VisualJudge


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
    return bootstrap_intervals(*_tables(results, rules), seed, resamples)


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
