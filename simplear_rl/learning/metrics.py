"""One rule for metrics of several groups or ranks."""

from collections.abc import Mapping, Sequence

import torch


def combined(rows: Sequence[Mapping[str, float | torch.Tensor]]) -> dict[str, float]:
    """One value per name: the extreme of what ends in _min or _max, the mean of the rest.

    So a rank that knows only its part of a sum reports the part times the number of ranks.
    """
    extremes = {"_min": min, "_max": max}
    values = {name: [float(row[name]) for row in rows] for name in rows[0]}
    return {name: extremes.get(name[-4:], _mean)(column) for name, column in values.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
