"""Why samples are rejected: reasons of a kind counted together."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable

from simplear_rl.data.pair_forms import LEFT_OUT

SYSTEM = {os.strerror(code) for code in errno.errorcode}
SHOWN = 5  # kinds


class Reasons:
    """Counts reasons that differ in numbers, or in the file that the operating system refuses, as one kind."""

    def __init__(self, reasons: Iterable[str] = ()):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.add(reasons)

    def add(self, reasons: Iterable[str]) -> None:
        """Count some more."""
        for reason in reasons:
            last = reason.rpartition(": ")[2]
            kind = last if last in SYSTEM else re.sub(r"\d+", "N", reason)
            self.counts[kind] += 1
            self.examples.setdefault(kind, reason)

    @property
    def bad(self) -> int:
        """How many there are, but for pairs that are only left out."""
        return self.counts.total() - sum(self.counts[reason] for reason in LEFT_OUT)

    def lines(self) -> list[str]:
        """The most frequent kinds, each as its number and its first reason."""
        lines = [f"{count} like: {self.examples[kind]}" for kind, count in self.counts.most_common(SHOWN)]
        more = len(self.counts) - len(lines)
        return [*lines, *([f"and {more} other kinds of reasons"] if more else [])]
