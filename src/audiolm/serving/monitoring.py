"""What a server tells Prometheus about itself."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """The metrics of /metrics."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("audiolm_requests", "Requests answered", ["path", "status"], registry=registry)
        times = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
        self._times = Histogram(
            "audiolm_request_seconds", "Seconds from request to answer", ["path"], registry=registry, buckets=times
        )
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self._sizes = Histogram("audiolm_batch_size", "Requests generated together", registry=registry, buckets=sizes)
        self._batches = Histogram("audiolm_batch_seconds", "Seconds to generate a batch", registry=registry, buckets=times)
        self.seconds = Counter("audiolm_sound_seconds", "Seconds of new sound generated, and of streams sent", registry=registry)
        Gauge("audiolm_waiting", "Requests waiting for the model or the detector", registry=registry).set_function(waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, status).inc()
        self._times.labels(path).observe(seconds)

    def batch(self, size: int, seconds: float) -> None:
        self._sizes.observe(size)
        self._batches.observe(seconds)
