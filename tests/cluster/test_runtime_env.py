"""runtime-env.yaml as `ray job submit` reads it, and together with what the driver sets."""

import yaml
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.runtime_env import RuntimeEnv
from ray.runtime_env.runtime_env import _merge_runtime_env

from actors import connection


def driver_runtime_env(monkeypatch) -> dict:
    given = {}
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connection.ray, "init", lambda **arguments: given.update(arguments))
    connection.connect()
    return given["runtime_env"]


def test_ray_knows_every_key(folder):
    values = parse_runtime_env_args(runtime_env=str(folder / "runtime-env.yaml"))
    assert RuntimeEnv(**values)["env_vars"] == values["env_vars"]
    assert values.keys() <= RuntimeEnv.known_fields  # Ray itself only warns


def test_it_sets_nothing_that_the_driver_sets(folder, monkeypatch):
    values = yaml.safe_load((folder / "runtime-env.yaml").read_text())
    driver = driver_runtime_env(monkeypatch)
    merged = _merge_runtime_env(values, driver)
    assert merged is not None  # what ray.init() calls a conflict, and refuses
    assert merged["env_vars"] == values["env_vars"] | driver["env_vars"]
    assert driver["env_vars"].keys() == {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS"}
    assert _merge_runtime_env({"env_vars": driver["env_vars"]}, driver) is None


def test_packages_stay_those_of_the_nodes(folder):
    values = yaml.safe_load((folder / "runtime-env.yaml").read_text())
    assert not values.keys() & {"pip", "uv", "conda", "container", "image_uri", "py_executable"}
