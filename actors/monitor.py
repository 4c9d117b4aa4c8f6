"""What every actor reports: whether it could start, its step, phase and throughput as Ray metrics, its log lines."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray.util.metrics import Gauge

from simplear_rl.errors import UserError

# Every actor answers `beat` on a thread of its own, whatever it computes.
CONCURRENCY_GROUPS = {"heartbeat": 1}


class Monitored:
    """Base of the actors. `name` labels the metrics, the log lines and the actor's entry in the dashboard."""

    def __init__(self, name: str, phases: tuple[str, ...]):
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
        self.name, self.phases = name, phases
        self.log = logging.getLogger(name)
        self.log.setLevel(logging.INFO)
        self.refusal: UserError | None = None
        tags = {"actor": name}
        self.step_gauge = Gauge("simplear_step", "step that the actor works on", ("actor",))
        self.phase_gauge = Gauge("simplear_phase", "1 for the phase that the actor is in", ("actor", "phase"))
        self.rate_gauge = Gauge("simplear_images_per_second", "throughput of the last phase", ("actor", "phase"))
        for gauge in self.step_gauge, self.phase_gauge, self.rate_gauge:
            gauge.set_default_tags(tags)

    def __repr__(self) -> str:
        return self.name

    @contextmanager
    def building(self) -> Iterator[None]:
        """Around what a constructor loads: keeps a UserError for `ready`, since a failed constructor loses its type."""
        try:
            yield
        except UserError as error:
            self.refusal = error

    def ready(self) -> None:
        """Return once the actor is built; raise the UserError that kept it from being."""
        if self.refusal:
            raise self.refusal

    @ray.method(concurrency_group="heartbeat", max_task_retries=0)
    def beat(self, seconds: float) -> str:
        """Take `seconds`, then say where this actor lives."""
        time.sleep(seconds)
        place = f"node {ray.util.get_node_ip_address()}, process {os.getpid()}"
        with suppress(OSError):  # of a system without /proc
            place += f", log {os.readlink('/proc/self/fd/2')}"
        return place

    @contextmanager
    def phase(self, phase: str, step: int, images: int) -> Iterator[None]:
        """Around one piece of work on `images` images."""
        self.step_gauge.set(step)
        self._enter(phase)
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self.rate_gauge.set(images / seconds, {"phase": phase})
        self._enter("idle")
        self.log.info("step %d: %s, %d images in %.2f s", step, phase, images, seconds)

    def _enter(self, phase: str) -> None:
        for other in (*self.phases, "idle"):
            self.phase_gauge.set(float(other == phase), {"phase": other})
