"""What happens to a run beside its steps: starts, lost actors, warnings. They are kept in the run's folder."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILE = "events.jsonl"
_listeners: list[Callable[[str], None]] = []


def note(text: str) -> None:
    """Let the run that is under way in this process keep a line, see `kept`."""
    for listener in list(_listeners):
        listener(text)


def say(*lines: str) -> None:
    """Print lines and `note` each."""
    for line in lines:
        print(f"{line}\n", end="", flush=True)  # in one piece: other threads print as well
        note(line)


@contextmanager
def kept(folder: Path, step: Callable[[], int]) -> Iterator[None]:
    """Append what is noted meanwhile to `folder`/events.jsonl, each with its time and the last step that was done."""

    def keep(text: str) -> None:
        row = {"step": step(), "time": round(time.time(), 3), "text": text}
        # There is no folder before the first step; and that the disk is full is said by those who must write.
        with suppress(OSError), (folder / FILE).open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")

    _listeners.append(keep)
    try:
        yield
    finally:
        _listeners.remove(keep)


def read_events(folder: Path) -> list[dict]:
    """Rows of a run's events, in order; lines that are none, such as one that a crash cut off, are left out."""
    file, rows = folder / FILE, []
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "time": float(row["time"]), "text": str(row["text"])})
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return rows
