"""Pairs of images and what people said of them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from simplear_rl.errors import UserError
from simplear_rl.files import write_text

Choice = Literal["left", "right", "tie"]
LABELS: dict[Choice, float] = {"left": 1.0, "right": 0.0, "tie": 0.5}  # of the image on the left


@dataclass(frozen=True)
class ImagePair:
    """Two images of a prompt; paths are relative to the folder of the labels."""

    prompt: str
    left: str
    right: str


class Labels:
    """The labels of pairs, in `folder`/labels.jsonl: objects in the form of Pick-a-Pic, see data/pair_forms.py.

    Several people may label at a time. Each session has a pair of its own at hand, and a pair gets one label. Which
    image is on the left depends on the pair alone.

    Raises:
        UserError: a line of the file is not what was written to it.
    """

    def __init__(self, folder: Path, pairs: list[ImagePair]):
        self.file, self.pairs, self.lock = folder / "labels.jsonl", [_mixed(pair) for pair in pairs], Lock()
        self.rows = self._read()
        self.at_hand: dict[str, int] = {}  # by session, the last to ask comes last

    def next(self, session: str) -> dict[str, Any]:
        """The pair that a session is to label, the same until it has; and how many have a label.

        Where others have all pairs at hand that are left, it is the one that was asked for first.
        """
        with self.lock:
            done = {row["pair"] for row in self.rows}
            free = [number for number in range(len(self.pairs)) if number not in done]
            if self.at_hand.get(session) not in free:
                self.at_hand.pop(session, None)
                taken = [number for number in self.at_hand.values() if number in free]
                number = next((number for number in free if number not in taken), taken[0] if taken else None)
                if number is not None:
                    self.at_hand[session] = number
            number = self.at_hand.get(session)
            about = {"done": len(done), "total": len(self.pairs), "undo": self._last(session) is not None}
            return about | ({} if number is None else {"pair": number, "prompt": self.pairs[number].prompt})

    def label(self, session: str, number: int, choice: Choice) -> bool:
        """Write a label; False if the pair has one already."""
        with self.lock:
            if any(row["pair"] == number for row in self.rows):
                return False
            pair, label = self.pairs[number], LABELS[choice]
            row: dict[str, Any] = {"prompt": pair.prompt, "jpg_0": pair.left, "jpg_1": pair.right}
            row |= {"label_0": label, "label_1": 1 - label, "pair": number, "session": session}
            self._write([*self.rows, row])
            return True

    def undo(self, session: str) -> bool:
        """Take back the session's last label, and give it that pair again; False if it has none."""
        with self.lock:
            last = self._last(session)
            if last is None:
                return False
            again = self.rows[last]["pair"]
            self._write([row for i, row in enumerate(self.rows) if i != last])
            self.at_hand[session] = again
            return True

    def image(self, number: int, side: Literal["left", "right"]) -> Path:
        """The file of an image of a pair."""
        return self.file.parent / getattr(self.pairs[number], side)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """The whole file anew: where it cannot be written, the one before stays, and the label is asked for again."""
        write_text(self.file, "".join(json.dumps(row) + "\n" for row in rows))
        self.rows = rows

    def _last(self, session: str) -> int | None:
        own = [i for i, row in enumerate(self.rows) if row["session"] == session]
        return own[-1] if own else None

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.exists():
            return []
        content, rows = self.file.read_text(encoding="utf-8"), []
        lines = content.splitlines()
        if not content.endswith("\n"):  # a copy of it was cut off: that label is asked for again
            lines = lines[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                pair = self.pairs[row["pair"]]
                same = (row["prompt"], row["jpg_0"], row["jpg_1"]) == (pair.prompt, pair.left, pair.right)
            except (ValueError, KeyError, TypeError, IndexError):
                same = False
            if not same:
                raise UserError(
                    f"{self.file}, line {number}: not a label of these pairs; go on with the prompts and the seed that "
                    "it was begun with, or choose another output"
                )
            rows.append(row)
        return rows


def _mixed(pair: ImagePair) -> ImagePair:
    """Either as it is or with the sides exchanged, so that no side is the better one by habit."""
    exchange = hashlib.sha256(f"{pair.prompt}:{pair.left}".encode()).digest()[0] % 2
    return ImagePair(pair.prompt, pair.right, pair.left) if exchange else pair
