"""Rewards that the user writes: `type: python`.

A function takes what it needs by name, and returns a number for each of the B images:

    def my_reward(images, prompts, answer, threshold=0.5):
        ...

images:     uint8 array [B, H, W, 3]; annotated `list[PIL.Image.Image]`, a list of such.
prompts:    list of B texts.
threshold:  any parameter that `arguments` names has the value that it has there.
answer:     any other parameter is a column of the prompts file, as a list of B values, None where a row lacks it; a
            parameter with a default may have none there. `**columns` takes all the others.

It returns a list, array or tensor of B numbers, or a dictionary of several such rewards by name; or it is `async` and
does. None or NaN says that an image cannot be scored, and so does an exception of the whole batch. The name may be that
of a class: it is built once in each reward actor, with `arguments`, and its `__call__` is the function.

In a training all B images of a call are of one prompt. `score` and `compare` mix prompts, and so do the two black
images on which a function is tried before anything starts, and a class once it is built.
"""

import asyncio
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
from PIL import Image

from simplear_rl.config.rewards import PythonRewardConfig
from simplear_rl.errors import UserError, device_memory_error
from simplear_rl.rewards.reward import (
    Columns,
    UnscoredError,
    WholeText,
    as_scores,
    try_on_blank_images,
)

Parameters = Mapping[str, inspect.Parameter]
GIVEN = ("images", "prompts")
FAULTS = (Exception, SystemExit)  # SystemExit would end an actor, which is then not restarted


class UserCode:
    """The function or class that a configuration names, not yet built or called.

    Raises:
        UserError: it cannot be imported, is not there, or does not take what it would be given; names it.
    """

    def __init__(self, config: PythonRewardConfig):
        self.config, self.about = config, f"reward {config.name} ({config.function})"
        where, _, name = config.function.rpartition(":")
        self.file: str | None = where
        module = self._import(where)
        self.file = module.__file__
        self.target: Any = getattr(module, name, None)
        if not callable(self.target):
            there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise self._fault(f"expected a function or class `{name}` in {where}, which has {_list(there)}")
        self.is_class = inspect.isclass(self.target)
        if self.is_class and not any("__call__" in vars(base) for base in self.target.__mro__):
            raise self._fault("a class needs a method `__call__(self, images, prompts)`")
        self.constructor = self._parameters(self.target)
        called = self._parameters(self.target.__call__) if self.is_class else self.constructor
        self.parameters = dict(list(called.items())[1:]) if self.is_class else called  # the first one is self
        self.arguments = {} if self.is_class else config.arguments  # of each call
        self._check_parameters()

    def _fault(self, what: str) -> UserError:
        return UserError(f"{self.about}: {what}")

    def _import(self, where: str) -> ModuleType:
        try:
            if not where.endswith(".py"):
                return importlib.import_module(where)
            name = f"reward_{Path(where).stem}"
            spec = importlib.util.spec_from_file_location(name, where)
            assert spec and spec.loader
            if (folder := str(Path(where).parent)) not in sys.path:
                sys.path.append(folder)  # for modules beside it, as where it is run as a script
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        except FAULTS as error:
            raise self._fault(f"cannot be imported: {self._in_words(error)}") from error

    def _parameters(self, function: Callable) -> Parameters:
        try:
            parameters = inspect.signature(function, eval_str=True).parameters
        except FAULTS as error:
            raise self._fault(f"its parameters cannot be read: {self._in_words(error)}") from error
        return {name: part for name, part in parameters.items() if part.kind != part.VAR_POSITIONAL}

    def _check_parameters(self) -> None:
        given = self.config.arguments
        if unknown := [name for name in given if name in GIVEN or not _takes(self.constructor, name)]:
            raise self._fault(
                f"`arguments` has {_list(unknown)}, which it does not take; it takes {_list(self.constructor)}"
            )
        if self.is_class and (missing := [name for name in _required(self.constructor) if name not in given]):
            raise self._fault(f"its constructor needs {_list(missing)}: name them in `arguments`")
        if "images" not in self.parameters:
            raise self._fault(f"it must take `images`; it takes {_list(self.parameters)}")
        if unnamed := [name for name, part in self.parameters.items() if part.kind == part.POSITIONAL_ONLY]:
            raise self._fault(f"it is called by the names of its parameters, which {_list(unnamed)} cannot be")

    @property
    def required_columns(self) -> list[str]:
        """The columns that it cannot do without."""
        return [name for name in _required(self.parameters) if name not in (*GIVEN, *self.arguments)]

    def check_columns(self, columns: Columns) -> None:
        """Raise UserError if it asks for a column that no row has."""
        there = list(dict.fromkeys(name for row in columns for name in row))
        if missing := [name for name in self.required_columns if name not in there]:
            raise self._fault(
                f"it asks for {_list(missing)}, neither in `arguments` nor a column of the prompts file, which has "
                f"besides the prompt {', '.join(there) or 'none'}"
            )

    def _in_words(self, error: BaseException) -> str:
        """An error in one line, with the last line of the user's file that it passed through."""
        text = " ".join(str(error).split())
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
        return f"{type(error).__name__}{': ' if text else ''}{text}{place}"


class PythonReward(UserCode, WholeText):
    """The rewards that a function or class of the user's gives.

    Args:
        config: which one; `weight` is not applied.
        device: unused: the user's code chooses its own.

    Raises:
        UserError: see UserCode; the class cannot be built.
    """

    def __init__(self, config: PythonRewardConfig, device: str = "cpu"):
        super().__init__(config)
        self.names: list[str] | None = None  # of the rewards that it returned
        self.takes_pictures = _names_pictures(self.parameters["images"].annotation)
        try:
            self.function = self.target(**config.arguments) if self.is_class else self.target
        except FAULTS as error:
            raise self._fault(f"cannot be built: {self._in_words(error)}") from error

    def check(self, texts: list[str], columns: Columns = ()) -> list[str]:
        """Score two black images for the first two prompts. Returns nothing: no text is cut.

        Raises:
            UserError: it asks for a column that is not there, or does not return what it should; an image that cannot
                be scored is no fault with `on_error: skip_group`.
        """
        columns = columns or [{} for _ in texts]
        self.check_columns(columns)
        try_on_blank_images(self.score, self.about, self.config.skips, texts, columns)
        return []

    def score(
        self, images: np.ndarray, texts: list[str], columns: Columns = ()
    ) -> np.ndarray | Mapping[str, np.ndarray]:
        """See RewardModel.

        Raises:
            UnscoredError: it raised an error.
            UserError: it did not return a number for each image, or others than before.
        """
        arguments = self._arguments(images, texts, columns or [{} for _ in texts])
        try:
            answer = self.function(**arguments)
            if inspect.isawaitable(answer):
                answer = asyncio.run(_awaited(answer))
        except FAULTS as error:
            if device_memory_error(error):  # which is no fault of the image
                raise
            raise UnscoredError(f"{self.about}: {self._in_words(error)}") from error
        try:
            scores = as_scores(answer, len(images))
        except ValueError as error:
            raise self._fault(str(error)) from None
        names = sorted(scores) if isinstance(scores, Mapping) else []
        if self.names is not None and names != self.names:
            raise self._fault(f"it returned {_list(names)} where it had returned {_list(self.names)} before")
        self.names = names
        return scores

    def _arguments(self, images: np.ndarray, texts: list[str], columns: Columns) -> dict[str, Any]:
        names = dict.fromkeys([*self.required_columns, *(name for row in columns for name in row)])
        asked = [n for n in names if n not in (*GIVEN, *self.arguments) and _takes(self.parameters, n)]
        given: dict[str, Any] = {
            "images": [Image.fromarray(image) for image in images] if self.takes_pictures else images
        }
        given |= {"prompts": list(texts)} if _takes(self.parameters, "prompts") else {}
        return given | self.arguments | {name: [row.get(name) for row in columns] for name in asked}


async def _awaited(answer: Any) -> Any:
    return await answer


def _takes(parameters: Parameters, name: str) -> bool:
    return name in parameters or any(part.kind == part.VAR_KEYWORD for part in parameters.values())


def _required(parameters: Parameters) -> list[str]:
    return [name for name, part in parameters.items() if part.default is part.empty and part.kind != part.VAR_KEYWORD]


def _list(names: Iterable[str] | None) -> str:
    return ", ".join(names or ()) or "nothing"


def _names_pictures(annotation: Any) -> bool:
    """Whether an annotation is, or is a list of, PIL's images."""
    if isinstance(annotation, type) and issubclass(annotation, Image.Image):
        return True
    return any(_names_pictures(part) for part in get_args(annotation))
