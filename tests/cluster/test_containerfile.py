"""Containerfile, read as instructions: no container engine is needed."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of each line; comments left out, continuation lines joined."""
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def problems(text: str) -> list[str]:
    """What is wrong with a Containerfile of this project."""
    steps = instructions(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = SpecifierSet(project["requires-python"])
    found = []
    for instruction, value in steps:
        if instruction == "FROM":
            image = re.fullmatch(r"\S+/python:(\d+\.\d+\.\d+)\S*@sha256:[0-9a-f]{64}", value)
            if not image or image[1] not in allowed:
                found.append(f"base image: {value}")
        if instruction == "COPY":
            *sources, _ = value.split()
            found += [f"no such source: {source}" for source in sources if not (ROOT / source).exists()]
            found += ["copies everything"] if "." in sources else []
        if instruction == "ADD":
            found.append(f"ADD: {value}")
        if instruction == "RUN" and "pip install" in value and "--no-deps" not in value:
            found.append(f"resolves dependencies: {value}")
        if instruction in ("ENV", "ARG") and re.search(r"(TOKEN|SECRET|PASSWORD|KEY)\w*\s*=", value):
            found.append(f"secret: {value}")
    if not any(i == "RUN" and "--requirement requirements-gpu.lock" in v for i, v in steps):
        found.append("the lock is not used")
    variables = {pair for i, v in steps if i == "ENV" for pair in v.split()}
    for needed in "RAY_AUTH_MODE=token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1", "HOME=/home/ray":
        if needed not in variables:
            found.append(f"missing: {needed}")
    users = [v for i, v in steps if i == "USER"]
    if not users or users[-1] in ("0", "root"):
        found.append("runs as root")
    return found


def test_containerfile_has_no_problem(folder):
    assert problems((folder / "Containerfile").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("@sha256:", "#", "base image"),
        ("python:3.11", "python:3.14", "base image"),
        ("COPY actors", "COPY actor", "no such source: actor"),
        ("COPY actors", "COPY .", "copies everything"),
        ("COPY actors", "ADD actors", "ADD"),
        ("--no-deps --requirement", "--requirement", "resolves dependencies"),
        ("requirements-gpu.lock\nCOPY", "requirements-cpu.lock\nCOPY", "the lock is not used"),
        ("USER=ray", "RAY_AUTH_TOKEN=abc", "secret"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "missing: RAY_AUTH_MODE=token"),
        ("USER $UID", "", "runs as root"),
        ("USER $UID", "USER root", "runs as root"),
    ],
)
def test_a_spoilt_containerfile_is_found_out(folder, old, new, problem):
    text = (folder / "Containerfile").read_text()
    assert old in text
    assert any(found.startswith(problem) for found in problems(text.replace(old, new)))


def test_all_that_the_project_imports_is_copied(folder):
    copied = {
        source for i, v in instructions((folder / "Containerfile").read_text()) if i == "COPY" for source in v.split()
    }
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages | {"configs", "pyproject.toml", "README.md"} <= copied
