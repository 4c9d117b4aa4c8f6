"""One process at a time in a folder: `lock.json` there says who has it.

The lock of a process on this machine holds as long as the process lives. That of another one holds as long as its
heartbeat goes on: a thread writes the file anew every BEAT seconds, and ends the process if the file is another's. No
clocks of two machines are compared, and the file is created with O_EXCL, so that it works on NFS.
"""

import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from math import inf
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep, time
from typing import Any, Self

from simplear_rl.errors import UserError

LOCK = "lock.json"
BEAT = 10.0  # seconds
# Longer than a network file system shows old content, and than a driver that is busy keeps its threads waiting.
DEAD = 180.0  # seconds without a heartbeat


def locked(key: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a command hold the lock of the folder that the key `key` of its configuration names."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def alone(config: Any, *args: Any, **options: Any) -> Any:
            with FolderLock(getattr(config, key), key):
                return command(config, *args, **options)

        return alone

    return decorate


def clear(folder: Path) -> None:
    """Delete what is in a folder, but for its lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


class FolderLock:
    """Holds the lock of a folder while used as a context manager; the folder is made if need be.

    A folder that cannot be written to is not locked: nothing can be spoiled there.

    Args:
        folder: of a run, or of what a command writes.
        key: where the user named it.

    Raises:
        UserError: another process has it; names host and process.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key, self.file = folder, key, folder / LOCK
        self.about: dict[str, Any] = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": _start_time(os.getpid()),
            "machine": _machine(),
            "file": str(self.file.absolute()),
            "token": secrets.token_hex(8),
        }
        self.made: list[Path] = []
        self.descriptor: int | None = None
        self.ended = Event()
        self.thread = Thread(target=self._beat, name="lock", daemon=True)

    def __enter__(self) -> Self:
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            created = self._create()
        except OSError:
            return self  # whoever writes there says why it cannot be
        try:
            while not created:
                self._clear()
                created = self._create()
        except OSError as error:
            if not os.access(self.folder, os.W_OK):
                return self
            raise UserError(f"{self.file}: whose it is cannot be told: {error.strerror or error}") from error
        self._write(0)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor is None:
            return
        self.ended.set()
        self.thread.join()
        os.close(self.descriptor)
        self.descriptor = None
        with suppress(OSError):
            if _token(self.file.read_bytes()) == self.about["token"]:
                self.file.unlink()
            for folder in self.made:  # empty only if nothing was done
                folder.rmdir()

    def _create(self) -> bool:
        """Create the file; False if there is one."""
        try:
            self.descriptor = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        return True

    def _write(self, beat: int) -> None:
        assert self.descriptor is not None
        with suppress(OSError):  # of a disk that is full, for one; the next beat tries again
            os.pwrite(self.descriptor, (json.dumps(self.about | {"beat": beat}) + "\n").encode(), 0)
            os.fsync(self.descriptor)

    def _beat(self) -> None:
        beat = 0
        while not self.ended.wait(BEAT):
            beat += 1
            self._end_if_lost()
            self._write(beat)

    def _end_if_lost(self) -> None:
        """End the process if another one has the lock: it took this one for dead, which had been suspended.

        At once and without a checkpoint: the folder is the other's.
        """
        try:
            owner = _parse(self._read() or b"")
        except OSError:  # the next beat looks again
            return
        if owner.get("token") in (None, self.about["token"]):  # None: who creates one has still to write it
            return
        lost = f"{self.folder}: {_name(owner)} works there since this process gave no sign of life: ending"
        with suppress(OSError):
            os.write(2, f"{lost}\n".encode(errors="backslashreplace"))
        os._exit(1)

    def _clear(self) -> None:
        """Remove the lock of a dead process. Raises UserError if it lives."""
        content = self._read()
        if content is None:
            return
        owner = _parse(content)
        if _is_here(owner):
            dead = _is_copy(owner, self.file) or owner["started"] != _start_time(owner["process"])
        else:
            dead = self._falls_silent(content, owner)
        if not dead:
            now = _parse(self._read() or content)
            raise UserError(
                f"{self.folder}: {_name(now)} works there; wait for it, end it, or choose another `{self.key}` "
                f"(its lock is {self.file})"
            )
        aside = self.file.with_name(f"{LOCK}.{self.about['token']}")
        with suppress(FileNotFoundError):  # another process was faster
            self.file.rename(aside)
            if _token(aside.read_bytes()) != owner.get("token"):  # a new one: it was faster still
                aside.rename(self.file)
            else:
                aside.unlink()

    def _falls_silent(self, content: bytes, owner: dict[str, Any]) -> bool:
        """Whether the lock's file stays as it is until DEAD seconds have passed since its last change."""
        end = monotonic() + DEAD - self._age()
        if end > monotonic():
            print(f"{self.file}: of {_name(owner)}; waiting for a sign of life, at most {DEAD:.0f} s", flush=True)
        while (left := end - monotonic()) > 0:
            sleep(min(left, BEAT / 5))
            if (now := self._read()) != content:
                return now is None  # it has ended
        return True

    def _age(self) -> float:
        """Seconds since the last change of the lock, by the clock of the storage."""
        probe = self.file.with_name(f"{LOCK}.{self.about['token']}")
        with suppress(OSError):
            probe.write_bytes(b"x")
            age = probe.stat().st_mtime - self.file.stat().st_mtime
            probe.unlink()
            return max(age, 0)
        return 0

    def _read(self) -> bytes | None:
        """The content, as the server has it; None if there is no lock."""
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return None


def silent_for(folder: Path) -> float:
    """Seconds since the process that works in a folder has given a sign of life; infinite if there is none.

    By this machine's clock and the storage's, which may differ: good enough for a word in a report.
    """
    try:
        return time() - (folder / LOCK).stat().st_mtime
    except OSError:
        return inf


def _parse(content: bytes) -> dict[str, Any]:
    """What a lock says; empty if it is not written yet, or damaged."""
    try:
        owner = json.loads(content.split(b"\n")[0])
        return owner if isinstance(owner, dict) else {}
    except ValueError:
        return {}


def _token(content: bytes) -> str | None:
    return _parse(content).get("token")


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "a process that has not said its name yet"
    return f"process {owner.get('process')} on {owner.get('host')}"


def _is_here(owner: dict[str, Any]) -> bool:
    """Whether the owner's process number is one of this machine, whose processes this user sees."""
    return bool(_machine()) and owner.get("machine") == _machine() and isinstance(owner.get("process"), int)


def _is_copy(owner: dict[str, Any], file: Path) -> bool:
    """Whether the lock came with a copy of the folder that it belongs to."""
    try:
        return not file.samefile(owner["file"])
    except (OSError, KeyError, TypeError):
        return False


def _machine() -> str:
    """The machine since it was started, the container and the user."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    return ""


def _start_time(process: int) -> str | None:
    """When a process of this machine was started, in the kernel's ticks; None if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
