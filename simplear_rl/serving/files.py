"""Pictures that are fetched by `url`: files in a folder of the server's own, under names that cannot be guessed."""

import secrets
import tempfile
import time
from pathlib import Path


class ExpiringFiles:
    """Keeps each file for `seconds`; the folder goes with the object."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.folder = tempfile.TemporaryDirectory(prefix="simplear-serve-")
        self.expiry: dict[str, float] = {}  # in the order of expiry, times of time.monotonic

    def add(self, content: bytes, extension: str) -> str:
        """Keep a file; returns its name."""
        self._expire()
        name = f"{secrets.token_urlsafe(24)}.{extension}"
        Path(self.folder.name, name).write_bytes(content)
        self.expiry[name] = time.monotonic() + self.seconds
        return name

    def get(self, name: str) -> bytes | None:
        """A file, if there is one of that name. No path comes from the name: only those that `add` gave are known."""
        self._expire()
        return Path(self.folder.name, name).read_bytes() if name in self.expiry else None

    def _expire(self) -> None:
        now = time.monotonic()
        while self.expiry and next(iter(self.expiry.values())) < now:
            name = next(iter(self.expiry))
            del self.expiry[name]
            Path(self.folder.name, name).unlink()
