"""Rewards that the user writes: what they may be, and the one line that each mistake gets."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from simplear_rl.config.rewards import PythonRewardConfig, RewardConfig
from simplear_rl.data.prompts import PromptRow
from simplear_rl.errors import UserError
from simplear_rl.rewards import trial
from simplear_rl.rewards.files import check_rewards
from simplear_rl.rewards.python import PythonReward
from simplear_rl.rewards.reward import UnscoredError
from simplear_rl.rewards.trial import try_functions

GOOD = """
import asyncio
from PIL import Image
import numpy as np
import torch

def red(images):
    return images[..., 0].mean((1, 2))

def pictures(images: list[Image.Image], prompts: list[str]):
    return [image.size[0] + len(prompt) for image, prompt in zip(images, prompts)]

def answered(images, prompts, answer, threshold=0.5, bonus=None):
    return [float(a) * threshold + (bonus[i] if bonus else 0) for i, a in enumerate(answer)]

def everything(images, **columns):
    return {name: values for name, values in columns.items() if name != "prompts"}

async def later(images):
    await asyncio.sleep(0)
    return [1] * len(images)

def several(images):
    return {"a": torch.ones(len(images), dtype=torch.bfloat16), "b": np.arange(len(images))}

def scalars(images):
    return [np.float32(1), np.bool_(True), torch.tensor(2.0), -0.0][: len(images)]

class Scaled:
    built = 0

    def __init__(self, factor, shift=0):
        Scaled.built += 1
        self.factor, self.shift = factor, shift

    async def __call__(self, images, prompts):
        return self.factor * np.ones(len(images)) + self.shift

def sometimes(images):
    return [1.0, None, float("nan"), 2.0][: len(images)]
"""
# The code of each, and what is said of it.
BAD = {
    "missing module": ("import nothing_of_that_name\ndef f(images): return [0, 0]", "ModuleNotFoundError: No module"),
    "syntax": ("def f(images) return 1", "cannot be imported: SyntaxError: expected ':'"),
    "fails when imported": ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero (my_reward.py, line 1)"),
    "exits when imported": ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3 (my_reward.py, line 2)"),
    "other name": ("def g(images): return [0, 0]", "expected a function or class `f` in"),
    "no function": ("f = 3", "expected a function or class `f` in"),
    "no images": ("def f(prompts): return [0, 0]", "it must take `images`; it takes prompts"),
    "no parameters": ("def f(): return [0, 0]", "it must take `images`; it takes nothing"),
    "by place alone": ("def f(images, /): return [0, 0]", "called by the names of its parameters, which images"),
    "unknown column": (
        "def f(images, answer): return [0, 0]",
        "it asks for answer, neither in `arguments` nor a column",
    ),
    "annotation": ("def f(images: 'list[Picture]'): return [0, 0]", "parameters cannot be read: NameError: name 'Pict"),
    "exception": ("def f(images):\n    raise KeyError('x')", "KeyError: 'x' (my_reward.py, line 2)"),
    "lines": ("def f(images): raise ValueError('one\\ntwo')", "ValueError: one two (my_reward.py, line 1)"),
    "exit": ("import sys\ndef f(images): sys.exit()", "SystemExit (my_reward.py, line 2)"),
    "assertion": ("def f(images): assert len(images) == 1", "AssertionError (my_reward.py, line 1)"),
    "nothing": ("def f(images): pass", "expected a list or array of 2 numbers, found NoneType None"),
    "one number": ("def f(images): return 1.0", "expected a list or array of 2 numbers, found float 1.0"),
    "numpy scalar": ("import numpy as np\ndef f(images): return np.float32(1)", "found float32 np.float32(1.0)"),
    "generator": ("def f(images):\n    yield 1", "expected a list or array of 2 numbers, found generator <generator"),
    "async generator": ("async def f(images):\n    yield 1", "found async_generator <async_generator"),
    "text": ("def f(images): return 'ab'", "expected a list or array of 2 numbers, found str 'ab'"),
    "texts": ("def f(images): return ['0.5', '0.7']", "expected a number for image 0, found str '0.5'"),
    "set": ("def f(images): return {1, 2}", "expected a list or array of 2 numbers, found set {1, 2}"),
    "too few": ("def f(images): return [1.0]", "expected 2 numbers, one for each image, found 1"),
    "too many": ("def f(images): return [1.0] * 3", "expected 2 numbers, one for each image, found 3"),
    "column vector": ("import numpy as np\ndef f(images): return np.ones((2, 1))", "found ndarray of shape [2, 1]"),
    "nested": ("def f(images): return [[1], [2]]", "expected a number for image 0, found list [1]"),
    "complex": ("def f(images): return [1j, 0]", "expected a number for image 0, found complex 1j"),
    "other device": ("import torch\ndef f(images): return torch.ones(2, device='meta')", "found Tensor of shape [2]:"),
    "tensors elsewhere": (
        "import torch\ndef f(images): return [torch.ones((), device='meta')] * 2",
        "expected numbers, found Tensor of shape []:",
    ),
    "nan": ("def f(images): return [0.5, float('nan')]", "of two black images the score of image 1 is nan"),
    "none": ("def f(images): return [None, 1]", "of two black images the score of image 0 is nan, expected a number"),
    "infinite": ("def f(images): return [1, -float('inf')]", "the score of image 1 is -inf, expected a number"),
    "beyond float32": ("def f(images): return [1e39, 0]", "the score of image 0 is inf, expected a number"),
    "no reward": ("def f(images): return {}", "expected names of rewards, found the keys []"),
    "number as name": ("def f(images): return {1: [0, 0]}", "expected names of rewards, found the keys [1]"),
    "one of several": ("def f(images): return {'a': [0, 0], 'b': [0]}", "'b': expected 2 numbers, one for each image"),
    "class without call": ("class f: pass", "a class needs a method `__call__(self, images, prompts)`"),
    "constructor": ("class f:\n def __init__(self, x): pass\n def __call__(self, images): pass", "constructor needs x"),
    "class that fails": (
        "class f:\n def __init__(self): 1 / 0\n def __call__(self, images): pass",
        "cannot be built: Z",
    ),
    "own call": ("class f:\n def __call__(self, prompts): pass", "it must take `images`; it takes prompts"),
}


def make(file: Path, code: str) -> Path:
    file.write_text(code, encoding="utf-8")
    return file


def config(file: Path, name: str, **more) -> PythonRewardConfig:
    return PythonRewardConfig(function=f"{file}:{name}", **more)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("good") / "good_rewards.py", GOOD)


def images(number: int, value: int = 0) -> np.ndarray:
    return np.full((number, 8, 8, 3), value, np.uint8)


@pytest.mark.parametrize("case", BAD)
def test_every_mistake_is_one_line_that_names_the_function(tmp_path, case):
    code, expected = BAD[case]
    chosen = config(make(tmp_path / "my_reward.py", code), "f")
    with pytest.raises(UserError) as error:
        PythonReward(chosen).check(["a", "b"])
    message = str(error.value)
    assert f"{tmp_path / 'my_reward.py'}:f" in message
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"treshold": 1}, "`arguments` has treshold, which it does not take; it takes images, prompts, answer, thresh"),
        ({"images": 1}, "`arguments` has images, which it does not take"),
    ],
)
def test_arguments_are_those_that_it_takes(good, arguments, message):
    with pytest.raises(UserError, match=message):
        PythonReward(config(good, "answered", arguments=arguments))


@pytest.mark.parametrize("function", ["red", "a.py:", ":red", "a.py:1x", "my reward.py:a b"])
def test_functions_are_written_with_their_module(function):
    with pytest.raises(ValueError, match="expected package.module:name or path/to/file.py:name"):
        PythonRewardConfig(function=function)


def test_files_are_found_from_everywhere_and_modules_by_name(monkeypatch, tmp_path, good):
    monkeypatch.chdir(good.parent)
    assert PythonRewardConfig(function="good_rewards.py:red").function == f"{good}:red"
    assert PythonRewardConfig(function="good_rewards.py:red").files == [good]
    named = PythonRewardConfig(function="colorsys:rgb_to_hsv", label="colour")
    assert (named.name, named.files) == ("colour", [])
    make(good.parent / "beside.py", "value = 7")
    chosen = make(good.parent / "uses_it.py", "import beside\ndef f(images): return [beside.value] * len(images)")
    monkeypatch.chdir(tmp_path)
    assert PythonReward(config(chosen, "f")).score(images(2), ["a"] * 2).tolist() == [7, 7]


def test_it_takes_what_it_asks_for_by_name(good):
    reward = PythonReward(config(good, "red"))
    assert reward.score(images(3, 5), ["a"] * 3).tolist() == [5, 5, 5]
    assert PythonReward(config(good, "pictures")).score(images(2), ["a", "bcd"]).tolist() == [9, 11]
    rows = [{"answer": "2", "unused": 1}, {"answer": "3", "unused": 1}]
    assert PythonReward(config(good, "answered")).score(images(2), ["a"] * 2, rows).tolist() == [1, 1.5]
    more = [row | {"bonus": 10} for row in rows]
    assert PythonReward(config(good, "answered")).score(images(2), ["a"] * 2, more).tolist() == [11, 11.5]
    bound = config(good, "answered", arguments={"threshold": 2, "answer": [4, 4]})
    assert PythonReward(bound).score(images(2), ["a"] * 2, rows).tolist() == [8, 8]
    scores = PythonReward(config(good, "everything")).score(images(2), ["a"] * 2, [{"x": 1, "y": None}, {"x": 2}])
    assert scores["x"].tolist() == [1, 2]
    assert np.isnan(scores["y"]).all()


def test_it_may_return_any_kind_of_numbers(good):
    assert PythonReward(config(good, "later")).score(images(2), ["a"] * 2).tolist() == [1, 1]
    several = PythonReward(config(good, "several")).score(images(2), ["a"] * 2)
    assert {name: values.tolist() for name, values in several.items()} == {"a": [1, 1], "b": [0, 1]}
    scalars = PythonReward(config(good, "scalars")).score(images(4), ["a"] * 4)
    assert scalars.dtype == np.float32
    assert scalars.tolist() == [1, 1, 2, 0]


def test_a_class_is_built_once(good):
    reward = PythonReward(config(good, "Scaled", arguments={"factor": 3}))
    reward.check(["a"])
    assert reward.score(images(2), ["a"] * 2).tolist() == [3, 3]
    assert reward.target.built == 1


def test_names_of_several_rewards_stay_the_same(tmp_path):
    code = "def f(images): return {'a' if len(images) == 2 else 'b': [1] * len(images)}"
    reward = PythonReward(config(make(tmp_path / "my_reward.py", code), "f"))
    reward.check(["a"])
    with pytest.raises(UserError, match="it returned b where it had returned a before"):
        reward.score(images(3), ["a"] * 3)


def test_images_that_cannot_be_scored_are_nan_and_by_choice_no_fault_of_the_trial(good, tmp_path):
    reward = PythonReward(config(good, "sometimes", on_error="skip_group"))
    assert reward.check(["a"]) == []
    assert np.isnan(reward.score(images(4), ["a"] * 4)).tolist() == [False, True, True, False]
    broken = make(tmp_path / "my_reward.py", "def f(images): 1 / 0")
    assert PythonReward(config(broken, "f", on_error="skip_group")).check(["a"]) == []
    with pytest.raises(UnscoredError, match=r"reward f \(.*my_reward.py:f\): ZeroDivisionError"):
        PythonReward(config(broken, "f", on_error="skip_group")).score(images(2), ["a"] * 2)
    full = make(tmp_path / "full.py", "import torch\ndef f(images): raise torch.OutOfMemoryError('CUDA out of memory')")
    with pytest.raises(torch.OutOfMemoryError):  # no fault of an image
        PythonReward(config(full, "f", on_error="skip_group")).score(images(2), ["a"] * 2)
    few = make(tmp_path / "few.py", "def f(images): return [1]")  # a mistake, not a sample
    with pytest.raises(UserError, match="expected 2 numbers"):
        PythonReward(config(few, "f", on_error="skip_group")).check(["a"])


def rewards(*models: PythonRewardConfig) -> RewardConfig:
    return RewardConfig(models=list(models))


def test_all_functions_are_tried_in_processes_of_their_own_before_a_run(good, tmp_path, capfd):
    code = "import os\ndef killed(images): os.kill(os.getpid(), 9)\ndef left(images): os._exit(4)\n"
    bad = make(tmp_path / "my_reward.py", code + "def talks(images):\n    print('hello')\n    return [1, 2]")
    rows = [PromptRow("a", {"answer": 1}), PromptRow("b", {"answer": 2})]
    try_functions(rewards(config(good, "answered"), config(bad, "talks")), rows)
    assert "hello" in capfd.readouterr().err
    with pytest.raises(UserError) as error:
        check_rewards(rewards(config(bad, "killed"), config(good, "red"), config(bad, "left")), rows)
    assert str(error.value).split("\n") == [
        f"reward killed ({bad}:killed): its process ended with signal {signal.SIGKILL:d} when it was to score "
        "two black images",
        f"reward left ({bad}:left): its process ended with status 4 when it was to score two black images",
    ]


def test_a_function_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 3)
    hanging = make(tmp_path / "my_reward.py", "import time\ndef f(images): time.sleep(1000)")
    with pytest.raises(UserError, match=r"my_reward.py:f\): did not score two black images within 3 s"):
        try_functions(rewards(config(hanging, "f")), [PromptRow("a")])


def test_a_class_is_checked_and_not_built_before_a_run(tmp_path):
    code = "class f:\n def __init__(self): open('built', 'w')\n def __call__(self, images, answer): return []"
    file = make(tmp_path / "my_reward.py", code)
    try_functions(rewards(config(file, "f")), [PromptRow("a", {"answer": 1})])
    assert not os.path.exists("built")
    with pytest.raises(UserError, match="asks for answer, neither in `arguments` nor a column .* which has .* tag$"):
        try_functions(rewards(config(file, "f")), [PromptRow("a", {"tag": 1})])


def test_pictures_are_recognised_by_their_annotation(tmp_path):
    for annotation in "Image.Image", "'list[Image.Image]'", "tuple[Image.Image, ...]":
        code = f"from PIL import Image\ndef f(images: {annotation}): return [i.size[0] for i in images]"
        reward = PythonReward(config(make(tmp_path / "my_reward.py", code), "f"))
        assert reward.takes_pictures
        assert reward.score(images(2), ["a"] * 2).tolist() == [8, 8]
