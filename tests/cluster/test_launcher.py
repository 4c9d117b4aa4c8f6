"""ray-cluster.yaml through the steps that `ray up` takes before it connects to a machine."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config


@pytest.fixture
def config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "ray-cluster.yaml").read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    config = prepare_config(config)
    validate_config(config)
    return config


def test_ray_accepts_it_as_a_head_and_three_workers(config):
    ready = prepared(config)
    (nodes,) = ready["available_node_types"].values()
    assert nodes["min_workers"] == nodes["max_workers"] == ready["max_workers"] == 3


@pytest.mark.parametrize("section", [None, "docker", "auth"])
def test_ray_refuses_an_unknown_key(config, section):
    (config if section is None else config[section])["imgae"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="'imgae' was unexpected"):
        prepared(config)


def test_ray_refuses_to_go_on_without_a_token_file(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="auth_token"):
        hash_runtime_conf(config["file_mounts"], None, config)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    hash_runtime_conf(config["file_mounts"], None, config)


def test_every_ray_process_asks_for_the_token_and_the_dashboard_stays_on_the_head(config):
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    assert "--env RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1" in options
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    (head,) = (command for command in config["head_start_ray_commands"] if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head.split()


def test_shared_memory_is_ample_and_the_shared_folder_must_exist(config):
    options = config["docker"]["run_options"]
    assert "--shm-size=128g" in options
    (mount,) = (option for option in options if "simplear_runs" in option)
    # Unlike --volume, --mount fails when the source is missing.
    assert mount.startswith("--mount type=bind,source=/FILL_IN")
