"""What a reward model must offer, and the scores of those that the user brings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from simplear_rl.errors import UserError

Columns = Sequence[Mapping[str, Any]]  # of each image, the row of its prompt in the prompts file


class RewardModel(Protocol):
    """What gives images a reward for their texts."""

    context_length: int | None  # tokens that it reads, if there is a limit

    def too_long(self, texts: list[str]) -> list[bool]:
        """Of each text, whether only its beginning is read."""

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """The texts of which only the beginning is read. Raises UserError if one cannot be scored."""

    def score(
        self, images: np.ndarray, texts: list[str], columns: Columns = ()
    ) -> np.ndarray | Mapping[str, np.ndarray]:
        """Rewards float32 [B] of uint8 images [B, H, W, 3], or several by name. NaN: the image cannot be scored."""


class WholeText:
    """A model that reads texts of any length."""

    context_length: int | None = None

    def too_long(self, texts: list[str]) -> list[bool]:
        """False of each text."""
        return [False] * len(texts)


class UnscoredError(UserError):
    """Some image of a batch cannot be scored: `on_error: skip_group` leaves its group out."""


def blank_images(number: int) -> np.ndarray:
    """What a reward is tried on before a run begins: black, uint8 [number, 256, 256, 3]."""
    return np.zeros((number, 256, 256, 3), np.uint8)


def try_on_blank_images(
    score: Callable[[np.ndarray, list[str], Columns], np.ndarray | Mapping[str, np.ndarray]],
    about: str,
    skips: bool,
    texts: list[str],
    columns: Columns,
) -> None:
    """Let `score` give two black images scores for the first two texts, and their columns.

    Raises UnscoredError, as `score` does, if it cannot, unless it `skips` such images.
    """
    two = slice(0, 2)
    try:
        if fault := unscored(by_name(score(blank_images(2), (texts * 2)[two], ([*columns] * 2)[two]))):
            raise UnscoredError(f"{about}: of two black images {fault}")
    except UnscoredError:
        if not skips:
            raise


def as_scores(answer: Any, number: int) -> np.ndarray | dict[str, np.ndarray]:
    """What a reward of the user's returned, as float32 [number], or several of them by name; NaN for None.

    Raises:
        ValueError: it is no list or array of so many numbers, nor a dictionary of such.
    """
    if not isinstance(answer, Mapping):
        return _numbers(answer, number)
    if not answer or not all(isinstance(name, str) and name for name in answer):
        raise ValueError(f"expected names of rewards, found the keys {list(answer)}")
    scores = {}
    for name, values in answer.items():
        try:
            scores[name] = _numbers(values, number)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    return scores


def unscored(scores: Mapping[str, np.ndarray]) -> str:
    """What is said of the first score that is not finite; nothing if all are."""
    for name, values in scores.items():
        if not np.isfinite(values).all():
            image = int(np.argmin(np.isfinite(values)))
            which = f" {name!r}" if name else ""
            return f"the score{which} of image {image} is {values[image]}, expected a number"
    return ""


def by_name(scores: np.ndarray | Mapping[str, np.ndarray], name: str = "") -> dict[str, np.ndarray]:
    """The scores of a model that is called `name`; several have their own names behind it."""
    if not isinstance(scores, Mapping):
        return {name: scores}
    return {f"{name}_{key}" if name else key: values for key, values in scores.items()}


def _numbers(values: Any, number: int) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, on whatever device
        values = _on_host(values)
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise ValueError(f"expected a list or array of {number} numbers, found {_in_words(values)}")
    if len(values) != number:
        raise ValueError(f"expected {number} numbers, one for each image, found {len(values)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
        return np.array([_number(i, value) for i, value in enumerate(values)]).astype(np.float32)


def _on_host(tensor: Any) -> np.ndarray:
    try:
        return tensor.detach().cpu().float().numpy()
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"expected numbers, found {_in_words(tensor)}: {error}") from None


def _number(image: int, value: Any) -> float:
    if value is None:
        return math.nan
    if getattr(value, "ndim", None) == 0:  # of a list of tensors, or of NumPy's scalars
        value = _on_host(value).item() if hasattr(value, "detach") else value.item()
    if not isinstance(value, bool | int | float):
        raise ValueError(f"expected a number for image {image}, found {_in_words(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _in_words(value: Any) -> str:
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        return f"{type(value).__name__} of shape {list(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
