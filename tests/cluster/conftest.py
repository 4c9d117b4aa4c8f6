"""What the tests of cluster/ share: where it is, and the Ray version that everything in it must have."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Path:
    return ROOT / "cluster"


@pytest.fixture
def ray_version() -> str:
    (version,) = re.findall(r"^ray==(\S+)$", (ROOT / "requirements-gpu.lock").read_text(), re.MULTILINE)
    return version
