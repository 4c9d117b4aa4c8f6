"""How long the phases of a demo take."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def timed(root: Path, phase: str) -> Iterator[None]:
    """Append the seconds that a phase took to `root`/timings.jsonl, also when it is interrupted."""
    start = time.monotonic()
    try:
        yield
    finally:
        line = json.dumps({"phase": phase, "seconds": time.monotonic() - start}) + "\n"
        with suppress(OSError), (root / "timings.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)  # of a full disk the phase itself has more to say
