"""Scores of many images, to a table and to a page: how a reward is tried before anything trains on it."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from simplear_rl.files import rendered, write_text
from simplear_rl.rewards.pictures import Source
from simplear_rl.rewards.scorer import Combined


@dataclass(frozen=True)
class ScoredImage:
    """An image with what the rewards say of it."""

    source: Source
    rewards: dict[str, float]  # by name; NaN: cannot be scored
    total: float
    error: str  # why it cannot be scored


def score_all(
    sources: Iterable[Source], score: Callable[[np.ndarray, list[str], list[dict]], Combined], batch_size: int
) -> Iterator[ScoredImage]:
    """Score images in order, in batches of one size; each by itself where one of a batch cannot be scored."""
    loaded = ((source, source.pixels()) for source in sources)
    for _, same_size in groupby(loaded, key=lambda pair: pair[1].shape):
        while batch := list(islice(same_size, batch_size)):
            yield from _score(batch, score)


def _score(batch: list[tuple[Source, np.ndarray]], score: Callable) -> Iterator[ScoredImage]:
    images, sources = np.stack([pixels for _, pixels in batch]), [source for source, _ in batch]
    found = score(images, [source.prompt for source in sources], [source.columns for source in sources])
    if found.error and len(batch) > 1:
        for part in batch:
            yield from _score([part], score)
        return
    for i, source in enumerate(sources):
        rewards = {name: float(values[i]) for name, values in found.rewards.items()}
        yield ScoredImage(source, rewards, float(found.total[i]), found.error)


def write_table(file: Path, scored: Sequence[ScoredImage]) -> None:
    """A row for each image, in the order in which they were scored."""
    names = names_of(scored)
    with open(file, "w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", "prompt", "total", *names, "error"])
        for image in scored:
            scores = [image.total, *(image.rewards.get(name, np.nan) for name in names)]
            cells = ["" if np.isnan(score) else f"{score:.7g}" for score in scores]
            writer.writerow([image.source.file, image.source.prompt, *cells, image.error])


def write_page(file: Path, scored: Sequence[ScoredImage]) -> None:
    """All images with their scores, the best first; those that cannot be scored come last."""
    order = sorted(scored, key=lambda image: (np.isnan(image.total), -image.total))
    figures = [
        {"image": image, "src": os.path.relpath(image.source.file, file.parent), "place": i}
        for i, image in enumerate(order, start=1)
    ]
    values = {"figures": figures, "names": names_of(scored), "summary": summarise(scored)}
    write_text(file, rendered(__package__, "scores.html.jinja", **values))


def names_of(scored: Sequence[ScoredImage]) -> list[str]:
    """The names of the rewards."""
    return list(dict.fromkeys(name for image in scored for name in image.rewards))


def summarise(scored: Sequence[ScoredImage]) -> dict[str, tuple[float, float, float, float]]:
    """Of the total and each reward: mean, standard deviation, lowest and highest, over the images that have it."""
    columns = {"total": [image.total for image in scored]}
    columns |= {name: [image.rewards.get(name, np.nan) for image in scored] for name in names_of(scored)}
    finite = {name: np.array(values)[np.isfinite(values)] for name, values in columns.items()}
    return {
        name: (float(v.mean()), float(v.std()), float(v.min()), float(v.max())) for name, v in finite.items() if len(v)
    }
