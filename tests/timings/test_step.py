"""`python -m simplear_rl.timings.step` on a CPU."""

import subprocess
import sys


def test_every_phase_is_timed(tmp_path):
    asked = "--policy 5m --resolution 64 --prompts 2 --samples 3 --guidance-scale 2 --clip ViT-B-32"
    run = subprocess.run(
        [sys.executable, "-m", "simplear_rl.timings.step", *asked.split()], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    phases = [line.split()[0] for line in run.stdout.splitlines() if " s" in line and not line.startswith(" ")]
    assert phases == ["rollout", "reward", "reference", "update", "weights", "step"]
    assert "ms a token, 6 images" in run.stdout and "--dry-run plans" in run.stdout
