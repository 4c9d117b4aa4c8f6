"""Curves of a run as numbers: what a report draws, thinned honestly, and what can be said of them in words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

POINTS = 2000  # of a curve: beyond, neighbours are drawn as their mean, lowest and highest value
BARS = 48  # of the time per phase
DIGITS = 7  # significant ones: what float32 holds
NARROWED = 0.3  # a fall of diversity that is warned of, as a share
PHASE = "_seconds"

Row = Mapping[str, float]


def axes(rows: Sequence[Row], images_per_step: int | None) -> dict[str, np.ndarray]:
    """Of every row, what was done until then: `steps`, `images` and `seconds`.

    Images are the `samples` of the rows, or `images_per_step`; without both there is no such axis. Seconds are the sum
    of `step_seconds`, in rows without them that of their phases.
    """
    steps = np.array([row["step"] for row in rows], float)
    found = {"steps": steps, "seconds": np.cumsum([step_seconds(row) for row in rows])}
    if rows and all("samples" in row for row in rows):
        found["images"] = np.cumsum([row["samples"] for row in rows])
    elif images_per_step:
        found["images"] = steps * images_per_step
    return found


def phases(row: Row) -> dict[str, float]:
    """Seconds of a step's phases, by name; what is in none of them is `other`.

    With `rollout.ahead` drawing goes on beside all others, and is none of them.
    """
    parts = {name.removesuffix(PHASE): value for name, value in row.items() if name.endswith(PHASE)}
    parts.pop("drawing", None)
    whole = parts.pop("step", None)
    if whole is not None:
        parts["other"] = max(0.0, whole - sum(parts.values()))
    return parts


def step_seconds(row: Row) -> float:
    """Seconds of a step, see `axes`."""
    return row.get(f"step{PHASE}", sum(phases(row).values()))


def parts_of(number: int, limit: int) -> list[slice]:
    """At most `limit` neighbouring parts of `number` rows, of sizes that differ by one at most."""
    edges = np.linspace(0, number, min(number, limit) + 1).round().astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


def curves(rows: Sequence[Row], names: Iterable[str], limit: int = POINTS) -> dict[str, dict[str, list[float | None]]]:
    """Of each metric `mean`, and of parts of more than one row also `low` and `high`; None where there is no value.

    Values that are not finite are left out of the curve: there is nowhere to draw them.
    """
    parts, found = parts_of(len(rows), limit), {}
    for name in names:
        values = np.array([_number(row.get(name)) for row in rows])
        if not np.isfinite(values).any():
            continue
        if len(parts) == len(rows):
            found[name] = {"mean": [tidy(value) if math.isfinite(value) else None for value in values.tolist()]}
        else:
            cut = [values[part][np.isfinite(values[part])] for part in parts]
            found[name] = {"mean": [tidy(part.mean()) if len(part) else None for part in cut]}
            found[name]["low"] = [tidy(part.min()) if len(part) else None for part in cut]
            found[name]["high"] = [tidy(part.max()) if len(part) else None for part in cut]
    return found


def time_per_phase(rows: Sequence[Row], limit: int = BARS) -> dict[str, Any]:
    """Mean seconds of a step by phase, for at most `limit` parts of the run: `from`, `to` (steps) and `phases`."""
    parts = [rows[part] for part in parts_of(len(rows), limit)]
    of_rows = [[phases(row) for row in part] for part in parts]
    names = list(dict.fromkeys(name for part in of_rows for found in part for name in found))
    means = {name: [tidy(float(np.mean([f.get(name, 0.0) for f in part]))) for part in of_rows] for name in names}
    return {
        "from": [part[0]["step"] for part in parts],
        "to": [part[-1]["step"] for part in parts],
        "phases": {name: values for name, values in means.items() if any(values)},
    }


def histogram(named: Mapping[str, Sequence[float]], bins: int = 24) -> dict[str, Any]:
    """Counts of each list of values in bins that all share: `edges` [bins + 1] and `counts` by name."""
    finite = {name: np.array([v for v in values if math.isfinite(v)]) for name, values in named.items()}
    every = np.concatenate([*finite.values(), np.zeros(0)])
    edges = np.histogram_bin_edges(every, bins)
    return {
        "edges": [tidy(edge) for edge in edges],
        "counts": {name: np.histogram(values, edges)[0].tolist() for name, values in finite.items()},
    }


def first_and_last(rows: Sequence[Row], name: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last tenth of the rows that have it; None where there are not two."""
    values = [row[name] for row in rows if math.isfinite(_number(row.get(name)))]
    if len(values) < 2:
        return None
    tenth = max(1, len(values) // 10)
    return float(np.mean(values[:tenth])), float(np.mean(values[-tenth:]))


def narrowed(rows: Sequence[Row]) -> str | None:
    """A warning if the reward rose while the diversity fell by more than NARROWED; see `first_and_last`."""
    reward, diversity = (first_and_last(rows, name) for name in ("reward", "diversity"))
    if not reward or not diversity or reward[1] <= reward[0] or diversity[1] >= (1 - NARROWED) * diversity[0]:
        return None
    return (
        f"the reward rose from {reward[0]:.3g} to {reward[1]:.3g} while the diversity of a prompt's images fell from "
        f"{diversity[0]:.3g} to {diversity[1]:.3g} (means of the first and the last tenth of the steps): look at the "
        "samples"
    )


def tidy(value: float) -> float:
    """A value with as many digits as are worth writing down."""
    return float(f"{value:.{DIGITS}g}")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
