"""What holds for all files of cluster/ alike: versions, tokens, what is to be filled in."""

import re

import pytest

# An image reference is lower case: Docker and the kubelet refuse one that says FILL_IN.
IMAGE = re.compile(r"(FILL_IN\w+|[a-z0-9.:-]+)/simplear-rl:ray-(?P<ray>\S+)")


@pytest.fixture
def texts(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_every_image_carries_the_locked_ray(texts, ray_version):
    tags = {name: [match["ray"] for match in IMAGE.finditer(text)] for name, text in texts.items()}
    for name in "ray-cluster.yaml", "kuberay-cluster.yaml", "kuberay-job.yaml", "kuberay-service.yaml":
        assert tags[name] == [ray_version], name
    assert f"simplear-rl:ray-{ray_version} ." in texts["Containerfile"]


def test_ray_asks_for_a_token_wherever_it_is_started(texts):
    started = {name for name, text in texts.items() if name not in ("runtime-env.yaml", "serve.yaml")}
    for name in started:
        assert re.search(r"RAY_AUTH_MODE(=|, value: )token", texts[name]), name
        assert re.search(r"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO(=|, value: )\"?1", texts[name]), name
        assert not re.search(r"RAY_AUTH_MODE(=|, value: )(?!token)", texts[name]), name


def test_no_file_holds_a_token(texts):
    for name, text in texts.items():
        assert not re.search(r"RAY_AUTH_TOKEN\b", text), name
        hexadecimal = re.sub(r"@sha256:[0-9a-f]{64}", "", text)
        assert not re.search(r"\b[0-9a-f]{32,}\b", hexadecimal), name


def test_only_the_operators_dashboard_leaves_loopback(texts):
    hosts = {name: re.findall(r"dashboard-host(?:=|: )(\S+)", text) for name, text in texts.items()}
    assert {name: found for name, found in hosts.items() if found} == {
        "ray-cluster.yaml": ["127.0.0.1"],
        "slurm.sh": ["127.0.0.1"],
        "kuberay-cluster.yaml": ["127.0.0.1"],
        "kuberay-job.yaml": ["0.0.0.0"],
        "kuberay-service.yaml": ["0.0.0.0"],
    }
