"""Tries the functions of `type: python` before anything starts, each in a process of its own.

So a function that ends its process, hangs or fills the memory does no harm to the command, and what it loads is gone
afterwards. Of a class the parameters are checked, and it is tried once a reward actor has built it. A reward with an
environment of its own is tried there too.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from simplear_rl.config.rewards import PythonRewardConfig, RewardConfig
from simplear_rl.errors import UserError, all_faults
from simplear_rl.rewards.python import PythonReward, UserCode

if TYPE_CHECKING:  # it brings Transformers, which the process of a function does without
    from simplear_rl.data.prompts import PromptRow

SECONDS = 600  # that two black images may take, with all that a function loads


def try_functions(config: RewardConfig, rows: Sequence["PromptRow"]) -> None:
    """Raise UserError if a function or class does not take or return what it should; all of them are named.

    One whose file is not there is passed over: whoever needs it says so. `rows` are those of the prompts file; none: it
    is not there yet, and functions that ask for columns are not called.
    """
    all_faults(
        *(
            partial(_try, model, rows)
            for model in config.models
            if isinstance(model, PythonRewardConfig) and not model.pip and all(file.exists() for file in model.files)
        )
    )


def _try(config: PythonRewardConfig, rows: Sequence["PromptRow"]) -> None:
    about = f"reward {config.name} ({config.function})"
    texts, columns = [row.text for row in rows[:2]], [row.columns for row in rows[:2]]
    request = pickle.dumps((sys.path, config, texts, columns))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__], input=request, stdout=subprocess.PIPE, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{about}: did not score two black images within {SECONDS} s") from None
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise UserError(f"{about}: its process ended with {ended} when it was to score two black images")
    if done.stdout:
        raise UserError(done.stdout.decode())


def main() -> None:
    """Read a request from standard input and answer on standard output what is wrong, or nothing."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints is no answer
    sys.path[:], config, texts, columns = pickle.load(sys.stdin.buffer)
    fault = ""
    try:
        code = UserCode(config)
        if texts:
            code.check_columns(columns)
        if not code.is_class and (texts or not code.required_columns):
            PythonReward(config).check(texts or ["a prompt"], columns)
    except UserError as error:
        fault = str(error)
    os.write(answer, fault.encode())
    os._exit(0)  # without waiting for threads of the user's code


if __name__ == "__main__":
    main()
