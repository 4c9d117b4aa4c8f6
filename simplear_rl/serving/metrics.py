"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


class Metrics:
    """`images` says how many wait or are drawn."""

    def __init__(self, images: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter("simplear_requests", "answers", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "simplear_image_seconds", "from an image's request to its picture", buckets=SECONDS, registry=self.registry
        )
        self.late = Counter("simplear_late_images", "given up at their deadline", registry=self.registry)
        self.failed = Counter("simplear_failed_images", "not drawn for a fault of the server", registry=self.registry)
        queued = Gauge("simplear_queued_images", "that wait or are drawn", registry=self.registry)
        queued.set_function(images)
