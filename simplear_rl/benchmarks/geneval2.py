"""The GenEval 2 rules (arXiv 2512.16853; evaluation.py and soft_tifa_analysis.py of facebookresearch/GenEval2).

Every prompt has questions about its image, each with the skill that it tests and the answer that is expected: a number
in words, or Yes. Soft-TIFA scores an answer by its probability as the first token of a visual judge's reply. Here is
all of it but the judge.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from simplear_rl.benchmarks.geneval import REWARD_IS_METRIC as GENEVAL_IS_METRIC
from simplear_rl.benchmarks.intervals import bootstrap_intervals

SKILLS = ("object", "attribute", "count", "position", "verb")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTING = "How many"  # how a question begins whose answer is a number
YES = ("Yes", "yes", " yes", " Yes")
ASKED = "{question} Answer in one word."
REWARD_IS_METRIC = {  # warnings, by the type of the reward
    "geneval": GENEVAL_IS_METRIC,
    "geneval2": (
        "Warning: the reward is GenEval 2's own score, and so is the metric of the benchmark geneval2. Its scores say "
        "how well the policy learned the reward; they are no independent measure of it."
    ),
}
LIKELY = 0.5  # from which probability on the page of an evaluation takes an answer for given


def accepted(question: str, answer: str) -> tuple[str, ...]:
    """The spellings of an answer whose first tokens' probabilities are summed: of a number as word and as digit.

    Spellings that begin with the same token are summed as often as they stand there: that is the published rule.
    """
    if not question.startswith(COUNTING):
        return YES
    digit = str(NUMBERS.index(answer) + 1)
    return answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}", digit, f" {digit}"


def soft_tifa(probabilities: Sequence[float]) -> tuple[float, float]:
    """Arithmetic and geometric mean of the probabilities of an image's expected answers."""
    values = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore"):  # an impossible answer makes the geometric mean 0
        return float(values.mean()), float(np.exp(np.log(values).mean()))


def scores(results: Sequence[Mapping]) -> dict[str, float]:
    """Scores from 0 to 100: `soft_tifa_gm` and `soft_tifa_am`, `atoms_N` of each atom count, and each skill.

    The first three are means over prompts of the mean over a prompt's images, those of an atom count of the geometric
    mean. A skill's score is the mean over its questions, of all images. `results` are rows with `prompt`, `atom_count`,
    `answers` (`skill`, `probability`), `arithmetic` and `geometric`.

    Raises:
        ValueError: there are none.
    """
    names, sums, counts = _tables(results)
    return dict(zip(names, (100 * sums.sum(axis=1) / counts.sum(axis=1)).tolist(), strict=True))


def confidence_intervals(
    results: Sequence[Mapping], seed: int, resamples: int = 2000
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of `scores`: prompts are resampled, with all their images.

    An interval is over those resamples that have a prompt or a question of it.
    """
    return bootstrap_intervals(*_tables(results), seed, resamples)


def _tables(results: Sequence[Mapping]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the scores, and for each of them and each prompt sum and number of what it is the mean of."""
    images: dict[str, list[Mapping]] = {}
    for row in results:
        images.setdefault(row["prompt"], []).append(row)
    if not images:
        raise ValueError("no images")
    atoms = sorted({row["atom_count"] for row in results})
    cells = {name: np.zeros((2, len(images))) for name in score_names(atoms, SKILLS)}
    for i, rows in enumerate(images.values()):
        geometric = float(np.mean([row["geometric"] for row in rows]))
        cells["soft_tifa_gm"][:, i] = geometric, 1
        cells["soft_tifa_am"][:, i] = np.mean([row["arithmetic"] for row in rows]), 1
        cells[f"atoms_{rows[0]['atom_count']}"][:, i] = geometric, 1
        for answer in (answer for row in rows for answer in row["answers"]):
            cells[answer["skill"]][:, i] += answer["probability"], 1
    names = [name for name, cell in cells.items() if cell[1].any()]
    sums, counts = np.stack([cells[name] for name in names], axis=1)
    return names, sums, counts


def score_names(atoms: Sequence[int], skills: Sequence[str]) -> list[str]:
    """Names of the scores of prompts with these atom counts and skills."""
    return ["soft_tifa_gm", "soft_tifa_am", *(f"atoms_{n}" for n in atoms), *skills]
