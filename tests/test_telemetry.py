"""No library reports its use, unless the user lets it: each is asked itself, in a process like an actor's."""

import json
import os
import subprocess
import sys

import pytest

ASK = """
import json
import actors.rollout  # what an actor's process imports first
from huggingface_hub import constants
from ray._common.usage.usage_lib import usage_stats_enabled
from vllm.usage.usage_lib import is_usage_stats_enabled
from wandb.env import error_reporting_enabled

print(json.dumps({
    "huggingface": not constants.HF_HUB_DISABLE_TELEMETRY,
    "ray": usage_stats_enabled(),
    "vllm": is_usage_stats_enabled(),
    "wandb": error_reporting_enabled(),
}))
"""
ON = {
    "HF_HUB_DISABLE_TELEMETRY": "0",
    "RAY_USAGE_STATS_ENABLED": "1",
    "VLLM_NO_USAGE_STATS": "0",
    "WANDB_ERROR_REPORTING": "true",
}


@pytest.mark.parametrize("allowed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_telemetry_is_off_by_default_and_can_be_allowed(tmp_path, allowed):
    values = {name: value for name, value in os.environ.items() if name not in {*ON, "DO_NOT_TRACK"}}
    values |= {"HOME": str(tmp_path)} | (ON if allowed else {})  # a home without any library's settings
    asked = subprocess.run([sys.executable, "-c", ASK], env=values, stdout=subprocess.PIPE, check=True, text=True)
    answers = json.loads(asked.stdout.splitlines()[-1])
    assert answers == dict.fromkeys(["huggingface", "ray", "vllm", "wandb"], allowed)
