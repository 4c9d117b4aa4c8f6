"""Joining a Ray cluster: that of RAY_ADDRESS, that of this machine, or a new one. A fault becomes one message."""

import json
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import current_thread, main_thread
from time import monotonic, sleep

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.services import find_bootstrap_address
from ray._private.utils import check_version_info
from ray._raylet import AuthenticationTokenLoader, GcsClient  # type: ignore[attr-defined]
from ray.actor import ActorHandle
from ray.exceptions import AuthenticationError, RayError

from simplear_rl.errors import UserError

ANSWER = 10.0  # seconds
FIRST_WORKER = 180.0  # seconds without a new worker process; Ray itself gives one a minute and tries again
SOCKET_PATH = 107  # bytes of the path of a Unix socket
SESSION = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # below Ray's folder
OWN_CLUSTER = "With RAY_ADDRESS=local a run starts a cluster of its own on this machine"
# Ray speaks gRPC, over HTTP/2, where a client begins with this and an empty frame of settings (RFC 9113, 3.4).
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def check_machine() -> None:
    """Raise UserError if no Ray cluster can work here, or none at RAY_ADDRESS. Quick: starts and joins nothing."""
    if ray.is_initialized():
        return
    address, name = _address()
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: a run cannot go through Ray Client. Submit it with `ray job submit`, or start it "
            f"on a node of the cluster with RAY_ADDRESS=HOST:6379. {OWN_CLUSTER}"
        )
    if odd := set(f"{sys.executable}{ray.__file__}") & set("'\"\\\n"):
        raise UserError(
            f"{sys.executable}: Ray cannot start processes from a path with {' '.join(map(repr, sorted(odd)))} in it; "
            "install the environment in another folder"
        )
    if address in ("", "local"):
        _check_temporary_folder()
    else:
        _require_answer(address, name)


def connect() -> None:
    """Join the Ray cluster of RAY_ADDRESS or of this machine; start a local one if there is none.

    Raises:
        UserError: that cannot be; says what to set.
    """
    if ray.is_initialized():
        return
    check_machine()
    address, name = _address()
    own = address in ("", "local")
    if own:
        _require_token()
    else:
        _require_welcome(address, name)
    # An actor without GPUs must not see any.
    # Without the second one Ray pickles the tensors of a broadcast: several times slower (docs/timings.md).
    names = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS")
    env: dict[str, object] = {"env_vars": dict.fromkeys(names, "1")}
    # Ray starts the workers of a runtime environment through a shell and does not quote the path of Python.
    if (quoted := shlex.quote(sys.executable)) != sys.executable:
        env["py_executable"] = quoted
    # Ray would start a worker for each CPU beforehand; none is ever used, since actors have environments of their own.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    # What actors print stays in their own logs, in the dashboard: the terminal belongs to the progress bars.
    try:
        ray.init(runtime_env=env, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        where = "no Ray cluster can be started here" if own else f"{name}: no Ray cluster can be joined there"
        raise UserError(f"{where}: {error}") from error
    _end_on_signals()


def _end_on_signals() -> None:
    """Let SIGTERM and, unless it is ignored (nohup), SIGHUP end the process as an error does: folders are unlocked.

    Ray's own handler of SIGTERM aborts the process.
    """

    def end(number: int, _: object) -> None:
        os.write(2, f"{signal.Signals(number).name}: ending\n".encode())
        sys.exit(128 + number)

    if current_thread() is main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, end)


def _address() -> tuple[str, str]:
    """The address to join, "" or "local" for a new cluster, and what a message calls it."""
    given = os.environ.get("RAY_ADDRESS", "")
    if given not in ("", "auto"):
        return given, f"RAY_ADDRESS={given}"
    # Of a cluster that was started on this machine, Ray keeps the address in a file.
    try:
        address = find_bootstrap_address(None) or ""
    except OSError as error:
        raise UserError(f"{error}: the Ray cluster on this machine is somebody else's. {OWN_CLUSTER}") from error
    if given == "auto" and not address:
        raise UserError(f"RAY_ADDRESS=auto: no Ray cluster was started on this machine. {OWN_CLUSTER}")
    return address, f"the Ray cluster at {address}"


def _check_temporary_folder() -> None:
    """Ray keeps the Unix sockets and the logs of a new cluster in its temporary folder."""
    folder = Path(get_default_ray_temp_dir()).absolute()
    name = next((f"{key}={os.environ[key]}" for key in ("RAY_TMPDIR", "TMPDIR") if key in os.environ), str(folder))
    advice = "set RAY_TMPDIR to a folder with a short path that can be written to, such as /tmp"
    if (length := len(os.fsencode(folder / SESSION))) > SOCKET_PATH:
        raise UserError(
            f"{name}: the path is too long for Ray's sockets, which may have {SOCKET_PATH} bytes, by "
            f"{length - SOCKET_PATH}; {advice}"
        )
    if not _writable(folder):
        raise UserError(f"{name}: Ray cannot write to {folder}; {advice}")


def _writable(folder: Path) -> bool:
    """Whether it is, or can be made, a folder that files can be written to."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _require_token() -> None:
    """Let a new cluster have a token that nobody else can read: in the home, as Ray keeps it, or of its own."""
    file = Path(os.environ.get("HOME", ""), ".ray", "auth_token")
    kept = file.is_absolute() and _writable(file.parent)
    loader = AuthenticationTokenLoader.instance()
    if loader.has_token(ignore_auth_mode=True):
        if kept and file.is_file() and file.stat().st_uid == os.getuid():
            file.chmod(0o600)  # Ray itself makes it readable for all
        return
    token = secrets.token_hex(32)
    if kept:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(descriptor, token.encode())
            os.close(descriptor)
    else:
        os.environ["RAY_AUTH_TOKEN"] = token
    loader.reset_cache()


def _require_answer(address: str, name: str) -> None:
    """Raise UserError if no Ray cluster answers at `address`.

    Ray itself would try for a minute, and wait for a cluster that hangs for a quarter of an hour.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER) as connection:
            connection.sendall(HTTP2_HELLO)
            connection.recv(1)  # of whatever it says: with TLS it does not like this
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{name}: no Ray cluster answers there ({error}); expected host:port of a running one. {OWN_CLUSTER}"
        ) from error


def _require_welcome(address: str, name: str) -> None:
    """Raise UserError if the cluster asks for another token, is of another version, or is not this user's.

    Ray itself asks in vain for half a minute; it ends the process where it finds no token or may not use a socket.
    """
    if name != f"RAY_ADDRESS={address}":
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init does
    has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    with_token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    bring = "bring the cluster's token to ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
    if with_token and not has_token:
        raise UserError(f"{name}: RAY_AUTH_MODE=token, and no token is here; {bring}. {OWN_CLUSTER}")
    try:
        client = GcsClient(address=address)
        nodes = client.get_all_node_info(timeout=ANSWER).values()
        metadata = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=ANSWER)
    except AuthenticationError as error:
        found = (
            "the cluster has another token" if with_token else "the cluster asks for a token: set RAY_AUTH_MODE=token"
        )
        raise UserError(
            f"{name}: {found}{'' if has_token and not with_token else f'; {bring}'}. {OWN_CLUSTER}"
        ) from error
    except (RayError, RuntimeError) as error:
        raise UserError(f"{name}: no Ray cluster that this Ray can speak to: {error}. {OWN_CLUSTER}") from error
    if metadata:
        _require_version(json.loads(metadata), name)
    sockets = [node.raylet_socket_name for node in nodes if os.path.exists(node.raylet_socket_name)]
    if not sockets:
        raise UserError(
            f"{name}: this machine is no node of that cluster; start the run on one of its nodes, or with `ray job "
            f"submit`. {OWN_CLUSTER}"
        )
    if not any(os.access(path, os.W_OK) for path in sockets):
        raise UserError(f"{name}: it belongs to another user, whose {sockets[0]} cannot be used. {OWN_CLUSTER}")


def _require_version(metadata: dict[str, str], name: str) -> None:
    try:
        check_version_info(metadata, "this machine")
    except RuntimeError as error:
        lines = " ".join(str(error).split())
        raise UserError(f"{name}: {lines}. Use the cluster's versions. {OWN_CLUSTER}") from error


def require_workers(actors: Mapping[str, ActorHandle]) -> None:
    """Wait until each of the actors has a process, in which it may still be loading.

    Raises:
        UserError: no new process has come up for FIRST_WORKER seconds; with what Ray's logs say.
    """
    waiting, last, said = dict(actors), monotonic(), False
    while True:
        table = ray._private.state.actors()
        up = [name for name, actor in waiting.items() if _has_process(table.get(actor._actor_id.hex()))]
        for name in up:
            del waiting[name]
        if not waiting:
            return
        now = monotonic()
        if up:
            last, said = now, False
        if now - last > FIRST_WORKER:
            raise UserError(f"Ray has started no process for {', '.join(waiting)}. {_logs()}")
        if now - last > FIRST_WORKER / 6 and not said:
            said = True
            print(f"waiting for Ray to start a process for {', '.join(waiting)}. {_logs()}", flush=True)
        sleep(0.2)


class _Nothing:
    """An actor that does nothing."""


def require_worker() -> None:
    """Raise UserError if Ray starts no process at all, see `require_workers`: for work that Ray Data starts."""
    actor = ray.remote(num_cpus=0)(_Nothing).remote()
    require_workers({"a first actor": actor})
    ray.kill(actor)


def _has_process(row: dict | None) -> bool:
    """Whether Ray's table of actors knows a process; one that has died is explained by whoever calls the actor."""
    return row is not None and (row["State"] not in ("DEPENDENCIES_UNREADY", "PENDING_CREATION") or row["Pid"] > 0)


def _logs() -> str:
    """The last complaints in Ray's logs on this node."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    complaints = []
    files = sorted(folder.glob("worker-*.err"), key=os.path.getmtime)[-1:]
    for file in folder / "raylet.err", *folder.glob("runtime_env_setup-*.log"), *files:
        if file.exists() and (lines := file.read_text(encoding="utf-8", errors="replace").strip().splitlines()):
            complaints.append("\n".join([f"{file}:", *lines[-5:]]))
    return "\n".join([f"Ray's logs: {folder}", *complaints])
