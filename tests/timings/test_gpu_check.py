"""The check of a GPU, as far as a CPU can run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "simplear_rl" / "timings" / "gpu_check.sh"


@pytest.mark.slow
def test_the_small_check_runs_to_its_end_on_a_cpu(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable}
    checked = subprocess.run(
        ["bash", SCRIPT, "--small"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout[-3000:]
    assert "FAILED" not in checked.stdout
    written = {file.name for file in (tmp_path / "gpu_check").iterdir()}
    assert written == {"log", "step_8.json", "step_8_guided.json", "step_12.json", "step_8_vllm.json"}
