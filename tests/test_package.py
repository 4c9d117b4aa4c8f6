"""The wheel holds all that the commands need, wherever they are called from."""

import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from zipfile import ZipFile

import pytest

from simplear_rl.cli import MISSING

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, built from a copy of this checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in "simplear_rl", "actors", "configs":
        copytree(REPOSITORY / name, source / name, symlinks=True)
    for name in "pyproject.toml", "README.md", "LICENSE":
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", source / "wheel", source], check=True)
    (wheel,) = (source / "wheel").glob("*.whl")
    ZipFile(wheel).extractall(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "status", "shown"),
    [
        (["--help"], 0, "key=value"),
        (["--dry-run"], 0, "assumed: the embedded world's"),
        (
            ["--dry-run", "--config", "configs/simplear_0.5b/grpo.yaml"],
            MISSING,
            "assumed: simplear-0.5b at 1024 pixels",
        ),
    ],
)
def test_commands_work_from_an_empty_folder(installed, tmp_path, arguments, status, shown):
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "simplear_rl.grpo", *arguments]
    values = [] if "--help" in arguments else [f"root={tmp_path}/root", "learner.actors.cpus=0.1"]
    done = subprocess.run(
        [*command, *values],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert shown in done.stdout
    assert list(tmp_path.iterdir()) == []
