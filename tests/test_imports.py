"""What a fresh interpreter loads with a module: heavy libraries come late or never."""

import subprocess
import sys
from pathlib import Path

import pytest

from simplear_rl.__main__ import COMMANDS

REPOSITORY = Path(__file__).parents[1]
SCHEMAS = sorted(file.stem for file in (REPOSITORY / "simplear_rl" / "config").glob("[a-z]*.py"))
# Imports the modules in turn, and says which of the libraries are there after which module.
CODE = """\
import sys, importlib
for module in {modules}:
    importlib.import_module(module)
    for library in {libraries}:
        if library in sys.modules:
            print(module, "loads", library)
"""


def loads(modules, libraries):
    code = CODE.format(modules=modules, libraries=libraries)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize(
    ("modules", "libraries"),
    [
        (
            ["simplear_rl", *(f"simplear_rl.config.{name}" for name in SCHEMAS), "simplear_rl.cli"],
            ["torch", "torchvision", "ray", "transformers", "huggingface_hub", "vllm", "deepspeed"],
        ),
        ([f"simplear_rl.{command}" for command in COMMANDS], ["vllm", "deepspeed"]),
        # What starts actors, and what every actor imports before it knows its role.
        (
            [*(f"simplear_rl.{name}" for name in ("demo", "dpo", "generate", "tokenize")), "actors.reward"],
            ["transformers.modeling_utils", "open_clip"],
        ),
    ],
    ids=["command line", "commands", "drivers"],
)
def test_heavy_libraries_are_imported_where_they_are_used(modules, libraries):
    assert loads(modules, libraries) == []


def test_torchvision_can_be_imported_beside_any_build_of_torch():
    assert loads(["simplear_rl", "torchvision"], ["torchvision"]) == ["torchvision loads torchvision"]
