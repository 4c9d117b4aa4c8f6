"""The images that wait for an engine: users take turns, however many images one of them asks for."""

from collections import Counter, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Waiting(Generic[Item]):
    """A queue for each user, who is KEY/NAME: whoever has a key may name as many users as he likes.

    Next is the key that has the fewest images running, of its users the one who has, and of those who waits longest.
    """

    def __init__(self) -> None:
        self.queues: dict[str, deque[Item]] = {}  # users in the order of their turns
        self.running: Counter[str] = Counter()  # of each user
        self.running_of_key: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def put(self, user: str, item: Item) -> None:
        """Let an item wait behind those of its user."""
        self.queues.setdefault(user, deque()).append(item)

    def next(self) -> tuple[str, Item] | None:
        """Whose turn it is, and with which item; None if nothing waits."""
        if not self.queues:
            return None
        user = min(self.queues, key=lambda user: (self.running_of_key[_key(user)], self.running[user]))
        return user, self.queues[user][0]

    def start(self, user: str) -> Item:
        """Take the user's first item: it runs until `finish`."""
        queue = self.queues.pop(user)
        item = queue.popleft()
        if queue:
            self.queues[user] = queue  # behind the other users
        self.running[user] += 1
        self.running_of_key[_key(user)] += 1
        return item

    def finish(self, user: str) -> None:
        """One of the user's items runs no longer."""
        for counter, name in (self.running, user), (self.running_of_key, _key(user)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def remove(self, user: str, item: Item) -> None:
        """Let an item wait no longer. Raises ValueError if it does not wait."""
        queue = self.queues.get(user, deque())
        queue.remove(item)
        if not queue:
            del self.queues[user]


def _key(user: str) -> str:
    return user.partition("/")[0]
