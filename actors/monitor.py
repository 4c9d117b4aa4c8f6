"""What every actor reports: its step, phase and throughput as Ray metrics, and a log line per phase."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray.util.metrics import Gauge


class Monitored:
    """Base of the actors. `name` labels the metrics, the log lines and the actor's entry in the dashboard."""

    def __init__(self, name: str, phases: tuple[str, ...]):
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        self.name, self.phases = name, phases
        self.log = logging.getLogger(name)
        tags = {"actor": name}
        self.step_gauge = Gauge("simplear_step", "step that the actor works on", ("actor",))
        self.phase_gauge = Gauge("simplear_phase", "1 for the phase that the actor is in", ("actor", "phase"))
        self.rate_gauge = Gauge("simplear_images_per_second", "throughput of the last phase", ("actor", "phase"))
        for gauge in self.step_gauge, self.phase_gauge, self.rate_gauge:
            gauge.set_default_tags(tags)

    def __repr__(self) -> str:
        return self.name

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
        self.log.debug("step %d: %s, %d images in %.2f s", step, phase, images, seconds)

    def _enter(self, phase: str) -> None:
        for other in (*self.phases, "idle"):
            self.phase_gauge.set(float(other == phase), {"phase": other})
