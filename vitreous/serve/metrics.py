"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

ROUTES = ("/", "/predict", "/explain", "/health/live", "/health/ready", "/metrics", "/openapi.json")
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        mine = self.registry
        self.requests = Counter("vitreous_requests", "Requests, by route and status.", ("route", "code"), registry=mine)
        self.seconds = Histogram(
            "vitreous_request_seconds", "From head to answer.", ("route",), buckets=SECONDS, registry=mine
        )
        self.pictures = Counter(
            "vitreous_pictures", "Pictures: answered, unusable, late, gone or failed.", ("outcome",), registry=mine
        )
        self.waiting = Gauge("vitreous_waiting_pictures", "Pictures that wait or are worked on.", registry=mine)
        self.batches = Histogram(
            "vitreous_batch_pictures", "Pictures in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=mine
        )
        self.engine = Histogram("vitreous_engine_seconds", "Of a batch in the engine.", buckets=SECONDS, registry=mine)
        ProcessCollector(registry=self.registry)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a request. Paths that are not the server's are one route: nobody can add to their number."""
        route = path if path in ROUTES else "other"
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
