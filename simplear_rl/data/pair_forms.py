"""Forms in which data sets keep pairs of images, told by their columns (keys of JSON objects, or columns of Parquet).

columns                               of                          which image is better
chosen, rejected                      plain pairs, `label`        the first
jpg_0, jpg_1, label_0, label_1        yuvalkirstain/pickapic_v2   the one of the higher label; `has_label` if any
path1, path2                          MizzenAI/HPDv3              the one with more votes in `choice_dist`, if any
image_path, human_preference          ymhao/HPDv2                 the one marked 1; both are lists of two
image_path, prompt_id, rank           zai-org/ImageRewardDB       the one of the lower rank, of all with a prompt_id
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import isfinite
from typing import Any

from simplear_rl.data.images import BadSampleError

TIE, UNLABELLED = "a tie", "no label"
LEFT_OUT = (TIE, UNLABELLED)  # reasons for which a pair is no pair, though nothing is wrong with it
Values = Mapping[str, Any]


@dataclass(frozen=True)
class RawPair:
    """Two images as they stand in columns, and how much better the first one is: above 0, 0 for a tie, or below."""

    first: Any
    second: Any
    preference: float


@dataclass(frozen=True)
class PairForm:
    """One of the forms above."""

    images: tuple[str, ...]  # columns
    others: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Values], RawPair]  # raises BadSampleError

    def columns_in(self, names: Iterable[str]) -> list[str]:
        """Those of its columns that are there."""
        return [name for name in names if name in (*self.images, *self.others, *self.optional)]

    def __str__(self) -> str:
        return " and ".join(self.images)


def _difference(first: Any, second: Any, name: str) -> float:
    if not all(isinstance(value, int | float) and isfinite(value) for value in (first, second)):
        raise BadSampleError(f"{name}: expected two numbers, found {first!r} and {second!r}")
    return first - second


def _plain(values: Values) -> RawPair:
    return RawPair(values["chosen"], values["rejected"], 1.0)


def _labelled(values: Values) -> RawPair:
    if values.get("has_label") is False:
        raise BadSampleError(UNLABELLED)
    labels = values["label_0"], values["label_1"]
    return RawPair(values["jpg_0"], values["jpg_1"], _difference(*labels, "label_0 and label_1"))


def _voted(values: Values) -> RawPair:
    votes = values.get("choice_dist")
    if votes is None:
        return RawPair(values["path1"], values["path2"], 1.0)
    first, second = _two(votes, "choice_dist")
    return RawPair(values["path1"], values["path2"], _difference(first, second, "choice_dist"))


def _marked(values: Values) -> RawPair:
    marks = _two(values["human_preference"], "human_preference")
    first, second = _two(values["image_path"], "image_path")
    return RawPair(first, second, _difference(*marks, "human_preference"))


def _two(values: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(values, list) or len(values) != 2:
        raise BadSampleError(f"{name}: expected a list of two, found {str(values)[:80]}")
    return values[0], values[1]


FORMS = (
    PairForm(("chosen", "rejected"), (), (), _plain),
    PairForm(("jpg_0", "jpg_1"), ("label_0", "label_1"), ("has_label",), _labelled),
    PairForm(("path1", "path2"), (), ("choice_dist",), _voted),
    PairForm(("image_path",), ("human_preference",), (), _marked),
)
RANKED = ("image_path", "prompt_id", "rank")


def pair_form(names: Iterable[str]) -> PairForm | None:
    """The form that has its columns among `names`, None if none has. The first one wins."""
    there = set(names)
    return next((form for form in FORMS if there.issuperset((*form.images, *form.others))), None)


def unknown_pair(names: Iterable[str]) -> str:
    """The message that no form has its columns among `names`."""
    forms = "; ".join(", ".join((*form.images, *form.others)) for form in FORMS)
    return f"no pairs: expected the columns {forms}; or {', '.join(RANKED)} in JSON; found {', '.join(names) or 'none'}"


def is_ranked(values: Any) -> bool:
    """Whether an entry is one image of several that are ranked."""
    return isinstance(values, dict) and values.keys() >= set(RANKED)


def pairs_of_ranking(entries: Iterable[tuple[str, Values]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All pairs of the entries of a file, which are numbered, within the same `prompt_id`: as plain pairs or ties.

    Each has the numbers of both entries. What has no number for a rank makes pairs that are bad.
    """
    groups: dict[Any, list[tuple[str, Values]]] = {}
    for number, entry in entries:
        groups.setdefault(str(entry["prompt_id"]), []).append((number, entry))
    for group in groups.values():
        for (one, first), (other, second) in combinations(group, 2):
            ranks = first["rank"], second["rank"]
            values = {"prompt": first.get("prompt"), "jpg_0": first["image_path"], "jpg_1": second["image_path"]}
            yield f"{one}-{other}", values | {"label_0": _negative(ranks[0]), "label_1": _negative(ranks[1])}


def _negative(rank: Any) -> Any:
    return -rank if isinstance(rank, int | float) else rank
