"""One rule for metrics of several groups or ranks."""

import sys
from collections.abc import Mapping, Sequence

import torch


def combined(rows: Sequence[Mapping[str, float | torch.Tensor]]) -> dict[str, float]:
    """One value per name: the extreme of what ends in _min or _max, the mean of the rest.

    So a rank that knows only its part of a sum reports the part times the number of ranks. `correction_ess`, the
    effective sample size as a share of the sample, is (mean w)^2 / mean w^2 over all rows: of one image, whose tokens
    share a weight, it would be 1 whatever the weight.
    """
    extremes = {"_min": min, "_max": max}
    values = {name: [float(row[name]) for row in rows] for name in rows[0]}
    found = {name: extremes.get(name[-4:], _mean)(column) for name, column in values.items()}
    if "correction_square" in found:
        found["correction_ess"] = found["correction_mean"] ** 2 / max(found["correction_square"], sys.float_info.min)
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
