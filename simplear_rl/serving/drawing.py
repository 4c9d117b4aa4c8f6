"""Draws images that are asked for at any time, by many users, on one engine in one thread."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from simplear_rl.serving.batches import ImageRequest, RunningBatch
from simplear_rl.serving.waiting import Waiting
from simplear_rl.weights.snapshot import Weights


class LateError(Exception):
    """An image was not complete at its deadline."""


class EngineFailedError(RuntimeError):
    """The engine draws no more images."""


@dataclass(frozen=True)
class Progress:
    """The codes of an image so far, or all of them."""

    codes: np.ndarray  # uint16 [t], raster order
    weight_version: int


@dataclass(eq=False)
class _Job:
    name: str
    user: str
    image: ImageRequest
    stops: Collection[int]  # numbers of codes that are reported
    deadline: float  # of time.monotonic
    report: Callable[[Progress | Exception], None]
    version: int = 0


class Drawing:
    """Images join the running batch as soon as they fit, users in turns, see Waiting.

    Everything that touches the engine happens in the thread of this class. A deadline or an abandoned iterator ends an
    image at the next step. Images that run when new weights come finish with the old ones.
    """

    def __init__(self, batch: RunningBatch):
        self.batch = batch
        self.waiting: Waiting[_Job] = Waiting()
        self.running: dict[str, _Job] = {}
        self.cancelled: list[_Job] = []
        self.weights: tuple[Weights, Future[int]] | None = None
        self.names = map(str, itertools.count())
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        threading.Thread(target=self._work, name="drawing", daemon=True).start()

    async def draw(
        self, image: ImageRequest, user: str, seconds: float, stops: Collection[int] = ()
    ) -> AsyncIterator[Progress]:
        """Yield what is drawn of an image at these numbers of codes, and in the end all of it.

        Raises:
            LateError: it is not complete after so many seconds.
            EngineFailedError: it has failed.
        """
        loop, reports = asyncio.get_running_loop(), asyncio.Queue[Progress | Exception]()

        def report(progress: Progress | Exception) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(reports.put_nowait, progress)

        job = _Job(next(self.names), user, image, stops, time.monotonic() + seconds, report)
        with self.changed:
            self.require_alive()
            self.waiting.put(user, job)
            self.changed.notify()
        try:
            while True:
                progress = await reports.get()
                if isinstance(progress, Exception):
                    raise progress
                yield progress
                if len(progress.codes) == self.batch.tokens:
                    return
        finally:
            with self.changed:
                self.cancelled.append(job)
                self.changed.notify()

    def load_weights(self, weights: Weights) -> "Future[int]":
        """Replace the weights between the images that run now and those that wait; the result is the new version.

        Weights that cannot be verified, see WeightReceiver, are a failure of the engine: it no longer draws.
        """
        with self.changed:
            self.require_alive()
            self.weights = weights, Future()
            self.changed.notify()
            return self.weights[1]

    def counts(self) -> tuple[int, int]:
        """Images that run and that wait."""
        with self.changed:
            return len(self.running), len(self.waiting)

    def require_alive(self) -> None:
        """Raise EngineFailedError if the engine has failed."""
        if self.failure:
            raise EngineFailedError(f"the engine has failed: {self.failure!r}")

    def _work(self) -> None:
        try:
            while True:
                with self.changed:
                    while not (self.waiting or self.running or self.cancelled or self.weights):
                        self.changed.wait()
                    self._drop()
                    self._admit()
                if self.running:
                    self._step()
                elif self.weights:
                    self._load()
        except BaseException as failure:
            with self.changed:
                self.failure = failure
                while turn := self.waiting.next():
                    self.running[turn[1].name] = self.waiting.start(turn[0])
                for job in self.running.values():
                    job.report(EngineFailedError(f"the engine has failed: {failure!r}"))
            raise

    def _drop(self) -> None:
        """Forget what nobody waits for, and what is late."""
        now = time.monotonic()
        queued = [job for queue in self.waiting.queues.values() for job in queue]
        late = [job for job in (*queued, *self.running.values()) if job.deadline < now]
        for job in late:
            job.report(LateError())
        for job in {*self.cancelled, *late}:
            if job.name in self.running:
                self.batch.remove(job.name)
                self._finish(job)
            elif job in self.waiting.queues.get(job.user, ()):
                self.waiting.remove(job.user, job)
        self.cancelled.clear()

    def _admit(self) -> None:
        while not self.weights and (turn := self.waiting.next()) and self.batch.fits(turn[1].image):
            job = self.waiting.start(turn[0])
            job.version = self.batch.engine.version
            self.running[job.name] = job
            self.batch.add(job.name, job.image, job.stops)

    def _step(self) -> None:
        for name, codes in self.batch.step().items():
            job = self.running[name]
            job.report(Progress(codes, job.version))
            if len(codes) == self.batch.tokens:
                self._finish(job)

    def _finish(self, job: _Job) -> None:
        del self.running[job.name]
        self.waiting.finish(job.user)

    def _load(self) -> None:
        assert self.weights
        (weights, done), self.weights = self.weights, None
        try:
            self.batch.engine.load_weights(weights)
        except Exception as error:
            done.set_exception(error)
            raise
        done.set_result(self.batch.engine.version)
