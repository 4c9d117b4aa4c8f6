"""The folder of an evaluation.

config.yaml          what it was made with
images/              the images, in the benchmark's own layout
features/NNNNN.npy   features of a prompt's images, where their diversity is measured
verdicts/NNNNN.json  the rows of a prompt, written when all its images are judged: what an interrupted evaluation keeps
results.jsonl        all rows, in the order of the prompts
scores.json          scores and their 95 % confidence intervals
index.html           every prompt with its images, what was required and what was found
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

import yaml

from simplear_rl.benchmarks.benchmark import READERS, Benchmark
from simplear_rl.benchmarks.page import write_page
from simplear_rl.benchmarks.spread import spread
from simplear_rl.config.base import GuidanceConfig
from simplear_rl.config.benchmarks import EvaluateConfig
from simplear_rl.errors import UserError
from simplear_rl.files import write_text
from simplear_rl.run.checkpoints import weights_sha256

# What may change when an evaluation goes on: it changes neither images nor verdicts.
FREE = ("root", "world", "prompts", "questions", "allow_missing", "accept_tokenizer", "scorer", "faults")
# No matter for score_only.
DRAWING = ("policy", "tokenizer", "seed", "temperature", *GuidanceConfig.model_fields, "engine")
WEIGHTS = "weights_sha256"
SEEN_WITHIN = 60.0  # seconds; NFS remembers for up to a minute that a file was not there
FREE_OF_ENGINE = ("engine.actors", "engine.max_concurrent", "engine.kv_cache_gib", "engine.max_prompt_tokens")


def open_folder(config: EvaluateConfig, benchmark: Benchmark) -> None:
    """Write config.yaml, or make sure that the folder was begun with the same settings and prompts.

    A folder in which nothing was drawn or judged yet takes new ones: its first start may have ended at a mistake.

    Raises:
        UserError: it was not; names the keys with both values.
    """
    values = config.model_dump(mode="json", exclude=set(DRAWING) if config.score_only else None)
    if config.policy and not config.score_only:
        values["policy"] = str(config.policy.resolve())  # `final` links to the newest checkpoint
        values[WEIGHTS] = weights_sha256(config.policy)
    asked = [(text, benchmark.rules_of(i)) for i, text in enumerate(benchmark.texts)]
    values["prompts_sha256"] = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    file = config.output / "config.yaml"
    if before := _read_settings(file):
        now = _flat(values)
        # Older versions wrote none, and a training evaluates a step before it writes it.
        before[WEIGHTS] = before.get(WEIGHTS) or now.get(WEIGHTS)
        changed = [key for key in now if now[key] != before.get(key) and not _free(key)]
        if changed:
            lines = [f"  {key}: {before.get(key)} -> {now[key]}" for key in changed]
            raise UserError(
                "\n".join([f"{config.output}: was begun with other settings; choose another `output`, or:", *lines])
            )
    write_text(file, yaml.safe_dump(values, sort_keys=False))


def _read_settings(file: Path) -> dict[str, object]:
    """What the folder was begun with; empty if nothing is there yet. Raises UserError if the file is damaged."""
    verdicts, images = (file.parent / name for name in ("verdicts", "images"))
    if not any(verdicts.glob("*.json")) and not any(images.glob("*")):
        return {}
    try:
        return _flat(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: damaged, and says no longer what the verdicts beside it were made with: delete the file if the "
            "settings are the same, or choose another `output`"
        ) from error


def write_verdict(output: Path, index: int, rows: Sequence[dict]) -> None:
    """Write the rows of a prompt; they appear all at once."""
    write_text(_verdict(output, index), json.dumps(list(rows)))


def unfinished(
    config: EvaluateConfig, benchmark: Benchmark, checksums: dict[int, list[int]] | None = None
) -> list[int]:
    """The prompts that have no verdict, or one on other images than those that are there.

    `checksums` are those of images that others made. The images that were drawn are read here.
    """

    def is_judged(index: int) -> bool:
        rows = _read_verdict(config.output, index)
        if rows is None:
            return False
        if checksums is not None:
            there = checksums[index]
        else:  # a crash can leave an image empty or cut
            samples, _ = benchmark.load(config.images, index, config.images_per_prompt)
            there = [sample.checksum for sample in samples]
        return [row["checksum"] for row in rows] == there

    with ThreadPoolExecutor(READERS) as pool:
        judged = list(pool.map(is_judged, range(len(benchmark.texts))))
    return [index for index, there in enumerate(judged) if not there]


def write_results(config: EvaluateConfig, benchmark: Benchmark) -> dict:
    """Write results.jsonl, scores.json and index.html from the verdicts; returns what scores.json holds.

    Raises:
        UserError: too few images for a score; or a verdict is not there, or damaged, though all were judged.
    """
    verdicts = _read_all(config, len(benchmark.texts))
    rows = [row for verdict in verdicts for row in verdict]
    left_out = len(benchmark.texts) * config.images_per_prompt - len(rows)
    try:
        summary = {"images": len(rows), "left_out": left_out} | benchmark.summary(rows)
    except ValueError as error:
        raise UserError(f"{config.images}: no score: {error}") from error
    if config.diversity:
        scores, intervals = spread(config.output, sorted({row["index"] for row in rows}))
        summary["scores"] |= scores
        summary["confidence_intervals"] |= intervals
    write_text(config.output / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_page(config, benchmark, rows, summary)
    write_text(config.output / "scores.json", json.dumps(summary, indent=1))  # last: it says that all is there
    return summary


def _read_all(config: EvaluateConfig, number: int) -> list[list[dict]]:
    """The rows of every prompt. On storage of several nodes, those of another node may take a while to be seen."""
    deadline = monotonic() + SEEN_WITHIN
    while True:
        found = [_read_verdict(config.output, index) for index in range(number)]
        missing = [str(_verdict(config.output, index)) for index, rows in enumerate(found) if rows is None]
        if not missing or config.allow_missing:
            return [rows or [] for rows in found]
        if monotonic() > deadline:
            raise UserError(
                f"{len(missing)} of {number} verdicts are missing or damaged, the first is {missing[0]}: the same "
                "command judges their images again"
            )
        sleep(1)


def _read_verdict(output: Path, index: int) -> list[dict] | None:
    """The rows of a prompt, None if it is not judged or a crash has damaged the verdict."""
    try:
        rows = json.loads(_verdict(output, index).read_text(encoding="utf-8"))
        return rows if all("checksum" in row for row in rows) else None
    except (OSError, ValueError, TypeError):
        return None


def _verdict(output: Path, index: int) -> Path:
    return output / "verdicts" / f"{index:05d}.json"


def _free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE + FREE_OF_ENGINE)


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Nested keys with dots."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
