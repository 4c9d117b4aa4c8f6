"""DPG-Bench as a Benchmark: its folder of 2x2 grids, one per prompt, named by item_id, and its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simplear_rl.benchmarks.benchmark import Box, Sample, read_image
from simplear_rl.benchmarks.dpg import grid, judge, split_grid, summary
from simplear_rl.benchmarks.dpg_questions import Question, Rules
from simplear_rl.data.columns import IMAGE_ENDINGS
from simplear_rl.errors import UserError
from simplear_rl.vision.judges import VisualJudge


class DpgBench:
    """Implements Benchmark.

    Args:
        prompts: by item_id.
        questions: of each prompt.
        rules: see `dpg`.
        judge_name: what the answers come from.
        size: side of one image in pixels; None where the grids were written here.

    Raises:
        UserError: an item_id cannot be the name of a file.
    """

    def __init__(
        self,
        prompts: Mapping[str, str],
        questions: Mapping[str, list[Question]],
        rules: Rules,
        judge_name: str,
        size: int | None,
    ):
        self.items, self.texts = list(prompts), list(prompts.values())
        self.questions, self.rules, self.judge_name, self.size = questions, rules, judge_name, size
        if bad := [item for item in self.items if Path(item).name != item]:
            raise UserError(f"item_id {bad[0]!r}: cannot be the name of a file")

    def write(self, folder: Path, index: int, images: np.ndarray) -> None:
        """See Benchmark; four images."""
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid(images)).save(self._file(folder, index))

    def load(self, folder: Path, index: int, number: int) -> tuple[list[Sample], list[str]]:
        """See Benchmark; `number` is 4."""
        files = self._there(folder, index)
        if len(files) != 1:
            problem = f"found {' and '.join(file.name for file in files)}" if files else "missing"
            return [], [f"{self._file(folder, index)}: {problem} (prompt {self.texts[index][:60]!r})"]
        file = files[0]
        try:
            pixels = read_image(file)
            images = split_grid(Image.fromarray(pixels), self.size or len(pixels) // 2)
        except UserError as error:
            return [], [str(error) if str(file) in str(error) else f"{file}: {error}"]
        return [Sample(f"{file.name}#{k + 1}", k, image) for k, image in enumerate(images)], []

    def extra(self, folder: Path) -> list[str]:
        """See Benchmark."""
        expected = {file for index in range(len(self.items)) for file in self._there(folder, index)}
        return [f"{path}: belongs to no prompt" for path in sorted(folder.iterdir()) if path not in expected]

    def judge(self, index: int, samples: Sequence[Sample], model: VisualJudge) -> list[dict]:
        """See Benchmark."""
        item = self.items[index]
        images = {sample.name: sample.pixels for sample in samples}
        return judge(item, self.texts[index], self.questions[item], images, model)

    def score_names(self) -> list[str]:
        """See Benchmark. By the official rules a prompt that is left out can take its categories with it."""
        questions = [question for asked in self.questions.values() for question in asked]
        return ["total", *sorted({name for question in questions for name in (question.broad, question.detailed)})]

    def summary(self, rows: Sequence[dict]) -> dict:
        """See Benchmark."""
        return summary(rows, self.judge_name, seed=0, rules=self.rules)

    def section(self, index: int) -> str:
        """See Benchmark."""
        return "prompts"

    def requirements(self, index: int) -> list[str]:
        """See Benchmark."""
        return [question.text for question in self.questions[self.items[index]]]

    def rules_of(self, index: int) -> Any:
        """See Benchmark."""
        return [asdict(question) for question in self.questions[self.items[index]]]

    def outcome(self, row: dict) -> tuple[bool, str, list[str], list[Box]]:
        """See Benchmark."""
        if row["score"] is None:
            return False, "left out", [row["dropped"]], []
        reasons = [
            f"{answer['question']} {answer['answer']}" + (", but not what it depends on" if answer["zeroed"] else "")
            for answer in row["answers"]
            if answer["answer"] != "yes" or answer["zeroed"]
        ]
        return row["score"] == 1, f"{100 * row['score']:.0f} of 100", reasons, []

    def _there(self, folder: Path, index: int) -> list[Path]:
        """A prompt's grid; of others it may be a JPEG, as those of SimpleAR are. More than one is too many."""
        files = (folder / f"{self.items[index]}.{ending}" for ending in IMAGE_ENDINGS)
        return [file for file in files if file.exists()]

    def _file(self, folder: Path, index: int) -> Path:
        return folder / f"{self.items[index]}.png"
