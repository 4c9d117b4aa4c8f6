"""Clusters that cannot be joined or started, each of which is one message, and what starts although little is there."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from actors import connection
from actors.connection import check_machine, require_workers
from simplear_rl.errors import UserError

ROOT = Path(__file__).parents[2]
JOIN = """
import sys
import ray
from actors.connection import connect
from simplear_rl.cli import exit_on_user_error

ray.__version__ = sys.argv[1] if len(sys.argv) > 1 else ray.__version__
exit_on_user_error("test", connect)
print(ray.is_initialized())
"""
# Root may write everywhere: another user that can read what this one can, and no more.
OTHER_USER = [
    "setpriv",
    "--reuid=12345",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
]


def environment(**values: str | None) -> dict[str, str]:
    """The environment of the tests without Ray's variables, with those given; None takes one out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    merged = inherited | {"PYTHONPATH": str(ROOT)} | values
    return {name: value for name, value in merged.items() if value is not None}


def join(*arguments: str, before: list[str] | None = None, **values: str | None) -> str:
    """What a process says that tries to connect."""
    command = [*(before or []), sys.executable, "-c", JOIN, *arguments]
    done = subprocess.run(command, env=environment(**values), capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a cluster with a token, and a home that has the token."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a" * 64)
    start = """
import sys, ray
context = ray.init(address="local", num_cpus=1, include_dashboard=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", start], env=environment(HOME=str(home), RAY_AUTH_MODE="token"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    yield process.stdout.readline().strip(), str(home)
    process.stdin.close()
    process.wait()


def test_a_cluster_that_asks_for_a_token_says_what_to_set(cluster, tmp_path):
    address, home = cluster
    asked = {"RAY_ADDRESS": address, "HOME": str(tmp_path)}
    said = join(**asked)
    assert f"RAY_ADDRESS={address}: the cluster asks for a token: set RAY_AUTH_MODE=token; bring the cluster's" in said
    assert "RAY_ADDRESS=local" in said
    assert "RAY_AUTH_MODE=token, and no token is here; bring" in join(**asked, RAY_AUTH_MODE="token")
    assert "the cluster has another token; bring" in join(**asked, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 64)
    assert "set RAY_AUTH_MODE=token. With" in join(**asked | {"HOME": home})  # the token is there
    assert "True" in join(**asked | {"HOME": home}, RAY_AUTH_MODE="token")


def test_a_cluster_of_another_version_or_another_user_is_refused(cluster):
    address, home = cluster
    mine = {"RAY_ADDRESS": address, "HOME": home, "RAY_AUTH_MODE": "token"}
    said = join("2.59.0", **mine)
    assert f"{address}: Version mismatch: The cluster was started with: Ray: {ray.__version__}" in said
    assert "Ray: 2.59.0" in said
    if os.getuid() == 0:
        assert f"{address}: it belongs to another user" in join(before=OTHER_USER, **mine)


WORK = """
import time
try:
    print("locked", flush=True)
    time.sleep(100)
finally:
    print("unlocked", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_an_error_does(cluster, number):
    address, home = cluster
    values = environment(RAY_ADDRESS=address, HOME=home, RAY_AUTH_MODE="token")
    heard = f"import signal; signal.signal({number:d}, signal.SIG_DFL)"  # under nohup it would be ignored
    command = [sys.executable, "-c", heard + JOIN + WORK]
    with subprocess.Popen(command, env=values, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and [process.stdout.readline() for _ in range(2)] == ["True\n", "locked\n"]
        process.send_signal(number)
        said, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "unlocked" in said
    assert f"{number.name}: ending" in complaints and "Traceback" not in complaints


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RAY_ADDRESS": "ray://127.0.0.1:10001"}, "cannot go through Ray Client. .*ray job submit"),
        ({"TMPDIR": "/tmp/" + "x" * 60}, "TMPDIR=/tmp/x+: the path is too long .* by 26; set RAY_TMPDIR"),
        ({"RAY_TMPDIR": "/tmp/" + "ä" * 30}, "RAY_TMPDIR=/tmp/ä+: the path is too long .* by 26; set RAY_TMPDIR"),
        ({"RAY_ADDRESS": "auto", "RAY_TMPDIR": "/tmp/none"}, "RAY_ADDRESS=auto: no Ray cluster was started on this"),
        ({"TMPDIR": "/dev/null"}, "TMPDIR=/dev/null: Ray cannot write to /dev/null/ray; set RAY_TMPDIR"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(monkeypatch, values, message):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name in "RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_machine()


@pytest.mark.parametrize("path", ["/home/o'brien/.venv/bin/python", '/opt/"new"/bin/python', "/opt/a\\b/bin/python"])
def test_a_path_of_python_that_ray_cannot_start_is_refused(monkeypatch, path):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(sys, "executable", path)
    with pytest.raises(UserError, match="Ray cannot start processes from a path with .* in it; install"):
        check_machine()


STAGE = """
import os, sys
import ray
from actors.connection import connect
from actors.monitor import CONCURRENCY_GROUPS, Monitored
from actors.placement import Stage
from simplear_rl.config.base import ActorsConfig

connect()


def where(self):
    return sys.executable


with Stage("test", {"worker.actors": ActorsConfig(cpus=0.5)}) as stage:
    class Worker(Monitored):
        def __init__(self, name, index):
            super().__init__(name, ())

    Worker.where = where
    actor, = stage.launch("worker.actors", ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(Worker))
    stage.ready()
    print("actor:", ray.get(actor.where.remote()))
"""


@pytest.mark.slow
def test_actors_start_from_a_path_with_spaces_without_a_home(tmp_path):
    place = tmp_path / "my $HOME (copy)"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text(f"{Path(ray.__file__).parents[1]}\n{ROOT}\n")
    python = place / "bin" / "python"
    values = environment(RAY_ADDRESS="local", HOME=None, RAY_USAGE_STATS_ENABLED="0")
    done = subprocess.run([python, "-c", STAGE], env=values, capture_output=True, text=True)
    assert f"actor: {python}" in done.stdout, done.stderr


@pytest.mark.slow
def test_actors_start_for_a_nameless_user_on_a_host_that_does_not_resolve(tmp_path):
    tmp_path.chmod(0o777)
    own = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "sh"]
    if subprocess.run([*own, *OTHER_USER, "true"], capture_output=True).returncode:
        pytest.skip("another host name and another user take rights that this user does not have")
    values = environment(RAY_ADDRESS="local", HOME="/nowhere", RAY_TMPDIR=f"/tmp/nameless-{os.getpid()}", USER=None)
    python = [*own, *OTHER_USER, sys.executable, "-c", STAGE]
    done = subprocess.run(python, env=values, capture_output=True, text=True, cwd=tmp_path)
    shutil.rmtree(values["RAY_TMPDIR"], ignore_errors=True)
    assert f"actor: {sys.executable}" in done.stdout, done.stderr


def test_actors_without_a_process_end_the_wait_with_what_rays_logs_say(ray_cluster, monkeypatch, capsys):
    monkeypatch.setattr(connection, "FIRST_WORKER", 12)
    nowhere = ray.remote(type("Nowhere", (), {})).options(
        num_cpus=0.1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}, "py_executable": "/no/such/python"}
    )
    actor = nowhere.remote()
    with pytest.raises(UserError, match=r"no process for test/nowhere-0. Ray's logs: (.|\n)*/no/such/python: No such"):
        require_workers({"test/nowhere-0": actor})
    assert "waiting for Ray to start a process for test/nowhere-0" in capsys.readouterr().out
    ray.kill(actor)


@pytest.mark.parametrize("before", [None, "a" * 64])
def test_the_token_of_a_new_cluster_is_the_users_alone(tmp_path, before):
    file = tmp_path / ".ray" / "auth_token"
    if before:
        file.parent.mkdir()
        file.write_text(before)
        file.chmod(0o644)  # as Ray itself makes it
    ask = "from actors.connection import _require_token; _require_token(); _require_token()"
    subprocess.run([sys.executable, "-c", ask], env=environment(HOME=str(tmp_path)), check=True)
    assert file.stat().st_mode & 0o777 == 0o600 and len(file.read_text()) == 64
    assert before in (None, file.read_text())
