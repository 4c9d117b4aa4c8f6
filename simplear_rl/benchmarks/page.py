"""The page of an evaluation: every prompt with its images, what was required, what was found and what is missing."""

import re
from collections.abc import Sequence

from simplear_rl.benchmarks.benchmark import Benchmark
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.files import rendered, write_text

FILE_AND_PART = re.compile(r"(.*?)(?:#(\d+))?")


def write_page(config: EvaluateConfig, benchmark: Benchmark, rows: Sequence[dict], summary: dict) -> None:
    """Write `output`/index.html from the rows of all images. It refers to the images where they are."""
    of_prompt: dict[int, list[dict]] = {}
    for row in rows:
        of_prompt.setdefault(row["index"], []).append(row)
    sections: dict[str, list[dict]] = {}
    for index, text in enumerate(benchmark.texts):
        figures: dict[str, dict] = {}
        for row in of_prompt.get(index, []):
            file, part = FILE_AND_PART.fullmatch(row["filename"]).groups()  # type: ignore[union-attr]
            figure = figures.setdefault(file, {"file": file, "row": row, "boxes": [], "verdicts": []})
            well, verdict, reasons, boxes = benchmark.outcome(row)
            figure["boxes"] += boxes
            figure["verdicts"].append({"part": part, "well": well, "verdict": verdict, "reasons": reasons})
        prompt = {
            "index": index,
            "text": text,
            "requirements": benchmark.requirements(index),
            "figures": list(figures.values()),
            "well": all(verdict["well"] for figure in figures.values() for verdict in figure["verdicts"]),
        }
        sections.setdefault(benchmark.section(index), []).append(prompt)
    values = {"config": config, "summary": summary, "sections": sections}
    write_text(config.output / "index.html", rendered(__package__, "page.html.jinja", **values))
