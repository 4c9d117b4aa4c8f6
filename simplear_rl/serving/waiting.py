"""The images that wait for an engine: users take turns, however many images one of them asks for."""

from collections import Counter, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """A queue for each user. The user who has the fewest images running is next; of those, who waits longest."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Item]] = {}  # users in the order of their turns
        self.running: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def put(self, user: str, item: Item) -> None:
        """Let an item wait behind those of its user."""
        self.queues.setdefault(user, deque()).append(item)

    def next(self) -> tuple[str, Item] | None:
        """Whose turn it is, and with which item; None if nothing waits."""
        if not self.queues:
            return None
        user = min(self.queues, key=self.running.__getitem__)
        return user, self.queues[user][0]

    def start(self, user: str) -> Item:
        """Take the user's first item: it runs until `finish`."""
        queue = self.queues.pop(user)
        item = queue.popleft()
        if queue:
            self.queues[user] = queue  # behind the other users
        self.running[user] += 1
        return item

    def finish(self, user: str) -> None:
        """One of the user's items runs no longer."""
        self.running[user] -= 1
        if not self.running[user]:
            del self.running[user]

    def remove(self, user: str, item: Item) -> None:
        """Let an item wait no longer. Raises ValueError if it does not wait."""
        queue = self.queues.get(user, deque())
        queue.remove(item)
        if not queue:
            del self.queues[user]
