"""GenEval 2 as a Benchmark: its file of prompts and questions, its folder of images, its rows.

The folder has `images.json`, the file of each prompt's image by prompt, as the published script reads it; a path there
is relative to the folder. Of several images a prompt, all are called `NNNNN-KK.png`, for line N of the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simplear_rl.benchmarks.benchmark import Box, Sample, read_image, read_text
from simplear_rl.benchmarks.geneval2 import (
    ASKED,
    COUNTING,
    LIKELY,
    NUMBERS,
    SKILLS,
    accepted,
    confidence_intervals,
    score_names,
    scores,
    soft_tifa,
)
from simplear_rl.characters import tidy
from simplear_rl.config.base import PromptText
from simplear_rl.errors import UserError
from simplear_rl.files import parse_json, unique_keys, write_text
from simplear_rl.vision.judges import JUDGES_DIFFER, ProbabilityJudge

PUBLISHED = "https://github.com/facebookresearch/GenEval2 (geneval2_data.jsonl)"
INDEX = "images.json"


class Entry(BaseModel):
    """A line of the file: a prompt, how many atoms it has, and its questions, each with answer and skill."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[PromptText, Field(min_length=1)]  # tidied as prompts files are, else it is not found by it
    atom_count: Annotated[int, Field(ge=1)]
    vqa_list: Annotated[list[tuple[str, str]], Field(min_length=1)]
    skills: list[Literal["object", "attribute", "count", "position", "verb"]]

    @model_validator(mode="after")
    def _questions_can_be_judged(self) -> "Entry":
        if len(self.skills) != len(self.vqa_list):
            raise ValueError(f"{len(self.vqa_list)} questions, {len(self.skills)} skills")
        for question, answer in self.vqa_list:
            numbers = question.startswith(COUNTING)
            if answer not in (NUMBERS if numbers else ("Yes",)):
                expected = "a number from one to ten in words" if numbers else "Yes"
                raise ValueError(f"{question!r}: expected the answer {expected}, found {answer!r}")
        return self


def read_entries(file: Path) -> list[Entry]:
    """The lines of GenEval 2's file.

    Raises:
        UserError: unreadable or empty file, bad lines (all of them, with their numbers), or a prompt that comes twice.
    """
    entries: dict[str, Entry] = {}
    bad = []
    for number, line in enumerate(read_text(file, PUBLISHED).rstrip("\n").split("\n"), start=1):
        try:
            entry = Entry.model_validate_json(line)
            parse_json(line)  # Pydantic takes the last of two equal keys
        except ValidationError as error:
            for problem in error.errors():
                key = ".".join(map(str, problem["loc"]))
                bad.append(f"{file}, line {number}: {f'{key}: ' if key else ''}{problem['msg']}")
            continue
        except ValueError as error:
            bad.append(f"{file}, line {number}: {error}")
            continue
        if entry.prompt in entries:
            bad.append(f"{file}, line {number}: the prompt {entry.prompt!r} stands there twice")
        entries[entry.prompt] = entry
    if bad:
        raise UserError("\n".join(bad))
    return list(entries.values())


def ask(
    model: ProbabilityJudge, images: Sequence[np.ndarray], entries: Sequence[Entry]
) -> list[tuple[list[float], float, float]]:
    """Of each image (uint8 [H, W, 3]) the probabilities of its entry's expected answers, and their two means."""
    asked = [(image, *pair) for image, entry in zip(images, entries, strict=True) for pair in entry.vqa_list]
    pictures, questions = [image for image, _, _ in asked], [ASKED.format(question=q) for _, q, _ in asked]
    found = model.probabilities(pictures, questions, [accepted(q, a) for _, q, a in asked]).tolist()
    answers = []
    for entry in entries:
        of_image, found = found[: len(entry.vqa_list)], found[len(entry.vqa_list) :]
        answers.append((of_image, *soft_tifa(of_image)))
    return answers


class GenEval2:
    """The benchmark of a list of entries. Implements Benchmark."""

    def __init__(self, entries: Sequence[Entry], judge_name: str):
        self.entries, self.judge_name = list(entries), judge_name
        self.texts = [entry.prompt for entry in entries]

    def write(self, folder: Path, index: int, images: np.ndarray) -> None:
        """See Benchmark. The index names the first image of each prompt."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in zip(self._names(index, len(images)), images, strict=True):
            Image.fromarray(image).save(folder / name)
        if index == 0:  # one writer is enough
            named = {text: self._names(i, 1)[0] for i, text in enumerate(self.texts)}
            write_text(folder / INDEX, json.dumps(named, indent=1, ensure_ascii=False))

    def load(self, folder: Path, index: int, number: int) -> tuple[list[Sample], list[str]]:
        """See Benchmark."""
        samples, problems = [], []
        names = self._names(index, number)
        try:
            # Where there is an index it alone says whose an image is: numbers may be those of another prompt_count.
            if number == 1 and (named := _read_index(folder)):
                if (text := self.texts[index]) not in named:
                    return [], [f"{folder / INDEX}: the prompt {text!r} is missing"]
                names = [named[text]]
        except (OSError, ValueError) as error:
            return [], [f"{folder / INDEX}: expected the file of each prompt's image: {error}"]
        for k, name in enumerate(names):
            try:
                samples.append(Sample(name, k, read_image(folder / name)))
            except UserError as error:
                there = (folder / name).exists()
                problems.append(str(error) if there else f"{folder / name}: missing (prompt {self.texts[index]!r})")
        return samples, problems

    def extra(self, folder: Path) -> list[str]:
        """See Benchmark. Only the index says what belongs to a prompt."""
        try:
            foreign = [text for text in _read_index(folder) if text not in self.texts]
        except (OSError, ValueError):  # `load` says so
            return []
        return [f"{folder / INDEX}: {text!r} is no prompt of the benchmark" for text in foreign]

    def judge(self, index: int, samples: Sequence[Sample], model: ProbabilityJudge) -> list[dict]:
        """See Benchmark."""
        entry = self.entries[index]
        rows = []
        answers = ask(model, [sample.pixels for sample in samples], [entry] * len(samples))
        for sample, (probabilities, arithmetic, geometric) in zip(samples, answers, strict=True):
            parts = zip(entry.vqa_list, entry.skills, probabilities, strict=True)
            answered = [
                {"question": q, "expected": a, "skill": skill, "probability": value} for (q, a), skill, value in parts
            ]
            row = {"filename": sample.name, "prompt": entry.prompt, "atom_count": entry.atom_count}
            means = {"arithmetic": arithmetic, "geometric": geometric, "score": geometric}
            rows.append(row | {"answers": answered} | means)
        return rows

    def score_names(self) -> list[str]:
        """See Benchmark."""
        asked = {skill for entry in self.entries for skill in entry.skills}
        atoms = sorted({entry.atom_count for entry in self.entries})
        return score_names(atoms, [skill for skill in SKILLS if skill in asked])

    def summary(self, rows: Sequence[dict]) -> dict:
        """See Benchmark."""
        intervals = confidence_intervals(rows, seed=0)
        named = {"judge": self.judge_name, "note": JUDGES_DIFFER.partition(";")[0] + "."}
        return named | {"scores": scores(rows), "confidence_intervals": intervals}

    def section(self, index: int) -> str:
        """See Benchmark."""
        return f"{self.entries[index].atom_count} atoms"

    def requirements(self, index: int) -> list[str]:
        """See Benchmark."""
        return [f"{question} \N{RIGHTWARDS ARROW} {answer}" for question, answer in self.entries[index].vqa_list]

    def rules_of(self, index: int) -> Any:
        """See Benchmark."""
        return self.entries[index].model_dump(mode="json")

    def outcome(self, row: dict) -> tuple[bool, str, list[str], list[Box]]:
        """See Benchmark."""
        reasons = [
            f"{answer['question']} \N{RIGHTWARDS ARROW} {answer['expected']}: {answer['probability']:.2f}"
            for answer in row["answers"]
            if answer["probability"] < LIKELY
        ]
        return not reasons, f"{100 * row['geometric']:.0f} of 100", reasons, []

    def _names(self, index: int, number: int) -> list[str]:
        return [f"{index:05d}-{k:02d}.png" for k in range(number)]


def _read_index(folder: Path) -> dict[str, str]:
    """By tidied prompt. Raises OSError or ValueError if it is damaged; it need not be there."""
    file = folder / INDEX
    if not file.exists():
        return {}
    found = json.loads(
        file.read_text(encoding="utf-8"),
        object_pairs_hook=lambda pairs: unique_keys([(tidy(text), path) for text, path in pairs]),
    )
    if not isinstance(found, dict) or not all(isinstance(path, str) for path in found.values()):
        raise ValueError("expected prompts and paths")
    return found
