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
    """Counts requests by key and images in all; what is beyond the limits comes back later."""

    def __init__(self, limits: LimitsConfig):
        self.limits = limits
        self.requests: Counter[str] = Counter()
        self.images = 0  # that wait or are drawn
        self.finished: deque[float] = deque(maxlen=64)  # times of time.monotonic

    def enter(self, key: str, images: int) -> ExitStack:
        """Count a request until the stack that is returned is closed.

        Raises:
            ApiError: 429, with Retry-After.
        """
        if self.requests[key] >= self.limits.requests_per_key:
            raise self._later(f"this key has {self.requests[key]} requests open: wait for one of them", 1)
        if self.images + images > self.limits.queued_images:
            raise self._later(f"{self.images} images wait or are drawn: try again later", self.images)
        self.requests[key] += 1
        self.images += images
        stack = ExitStack()
        stack.callback(self._leave, key, images)
        return stack

    def _leave(self, key: str, images: int) -> None:
        self.images -= images
        self.requests[key] -= 1
        if not self.requests[key]:
            del self.requests[key]
        self.finished.extend([time.monotonic()] * images)

    def _later(self, message: str, images: int) -> ApiError:
        """429; half of these images should be done by then."""
        first = self.finished[0] if self.finished else time.monotonic()
        seconds = (time.monotonic() - first) / max(1, len(self.finished)) * images / 2
        retry = str(min(60, max(1, ceil(seconds))))
        return ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": retry})
