"""Who may ask, and for how much at a time."""

import hashlib
import hmac
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from math import ceil

from simplear_rl.config.serving import LimitsConfig
from simplear_rl.serving.errors import ApiError

ANYBODY = "anybody"  # where no key is set
RECENT = 60.0  # seconds: how fast images are drawn is judged by those that were finished since


def digest(key: str) -> str:
    """What the server keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def authenticate(authorization: str, digests: Sequence[str]) -> str:
    """The digest of the key that a request brings; in the same time for every wrong key.

    Raises:
        ApiError: 401.
    """
    if not digests:
        return ANYBODY
    scheme, _, key = authorization.partition(" ")
    found = digest(key.strip())
    right = [hmac.compare_digest(found, known) for known in digests]
    if scheme.lower() != "bearer" or not any(right):
        raise ApiError(
            401,
            "the API key is missing or wrong: send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return found


class Admission:
    """Counts requests and images; what is beyond the limits comes back later.

    One of several keys may have half of all images, so that the others always get in.

    A request counts from its first byte, so that nobody holds the server with bodies that never end.
    """

    def __init__(self, limits: LimitsConfig, keys: int):
        self.limits = limits
        self.share = max(limits.images_per_request, limits.queued_images // min(2, max(1, keys)))
        self.requests: Counter[str] = Counter()  # by key
        self.images_of: Counter[str] = Counter()  # by key: that wait or are drawn
        self.finished: deque[float] = deque(maxlen=64)  # times of time.monotonic

    def enter(self, key: str) -> ExitStack:
        """Count a request until the stack that is returned is closed.

        Raises:
            ApiError: 429, with Retry-After.
        """
        if self.requests[key] >= self.limits.requests_per_key:
            raise self._later(f"this key has {self.requests[key]} requests open: wait for one of them", 1)
        self.requests[key] += 1
        entered = ExitStack()
        entered.callback(self._leave, key)
        return entered

    @property
    def images(self) -> int:
        """All that wait or are drawn."""
        return self.images_of.total()

    def admit(self, images: int, key: str, entered: ExitStack) -> None:
        """Count the images of a request that has entered, for as long as it does.

        Raises:
            ApiError: 429, with Retry-After.
        """
        mine = self.images_of[key]
        if mine + images > self.share:
            raise self._later(f"{mine} images of this key wait or are drawn: try again later", mine)
        if self.images + images > self.limits.queued_images:
            raise self._later(f"{self.images} images wait or are drawn: try again later", self.images)
        self.images_of[key] += images
        entered.callback(self._finish, images, key)

    def _leave(self, key: str) -> None:
        self.requests[key] -= 1
        if not self.requests[key]:
            del self.requests[key]

    def _finish(self, images: int, key: str) -> None:
        self.images_of[key] -= images
        self.finished.extend([time.monotonic()] * images)

    def _later(self, message: str, images: int) -> ApiError:
        """429; half of these images should be done by then."""
        now = time.monotonic()
        while self.finished and self.finished[0] < now - RECENT:
            self.finished.popleft()
        first = self.finished[0] if self.finished else now
        seconds = (now - first) / max(1, len(self.finished)) * images / 2
        retry = str(min(60, max(1, ceil(seconds))))
        return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": retry})
