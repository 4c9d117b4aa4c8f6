"""Pictures that are fetched by `url`: files in a folder of the server's own, under names that cannot be guessed."""

import asyncio
import secrets
import tempfile
import time
from pathlib import Path


class ExpiringFiles:
    """Keeps each file for `seconds`, and of all of them `most_bytes`: then the oldest ones go before their time.

    A file that somebody else removes, as cleaners of temporary folders do, is gone, and nothing more.
    """

    def __init__(self, seconds: float, most_bytes: int = 2**30):
        self.seconds, self.most_bytes = seconds, most_bytes
        self.folder = tempfile.TemporaryDirectory(prefix="simplear-serve-")
        self.kept: dict[str, tuple[float, int]] = {}  # oldest first: expiry in time.monotonic, and bytes

    def add(self, content: bytes, extension: str) -> str:
        """Keep a file; returns its name. Needs a running event loop, which removes it in time."""
        name = f"{secrets.token_urlsafe(24)}.{extension}"
        Path(self.folder.name).mkdir(mode=0o700, exist_ok=True)
        self._path(name).write_bytes(content)
        self.kept[name] = time.monotonic() + self.seconds, len(content)
        while sum(size for _, size in self.kept.values()) > self.most_bytes:
            self._remove_oldest()
        asyncio.get_running_loop().call_later(self.seconds, self._expire)
        return name

    def get(self, name: str) -> bytes | None:
        """A file, if there is one of that name. No path comes from the name: only those that `add` gave are known."""
        self._expire()
        return self._path(name).read_bytes() if name in self.kept and self._path(name).exists() else None

    def close(self) -> None:
        """Remove all of them."""
        self.kept.clear()
        self.folder.cleanup()

    def _expire(self) -> None:
        now = time.monotonic()
        while self.kept and next(iter(self.kept.values()))[0] <= now:
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        name = next(iter(self.kept))
        del self.kept[name]
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return Path(self.folder.name, name)
