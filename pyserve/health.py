"""The health and metrics of the service: ``/livez``, ``/readyz`` and ``/metrics``."""

from collections.abc import Iterator

import falcon
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pyserve._metrics import BOUNDS, Metrics


class ServiceCollector(Collector):
    """What the workers counted, summed up whenever it is asked for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the service."""
        counts = self._metrics.snapshot()

        requests = CounterMetricFamily("pyserve_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in counts["requests"].items():
            requests.add_metric([route, status], count)
        yield requests
        yield CounterMetricFamily("pyserve_texts", "Texts classified.", value=counts["texts"])
        yield by_cause("pyserve_predictions", "Texts by the label that came first.", "label", counts["predictions"])
        yield CounterMetricFamily("pyserve_received_bytes", "Bytes of request bodies.", value=counts["bytes_in"])
        yield CounterMetricFamily("pyserve_sent_bytes", "Bytes of response bodies.", value=counts["bytes_out"])
        yield histogram(
            "pyserve_request_duration_seconds",
            "Time spent on a request to /inferreview, from its last byte read to its answer handed to the server.",
            counts["latency"],
        )
        yield histogram("pyserve_predict_duration_seconds", "Time the model took for a text.", counts["predict"])

        yield GaugeMetricFamily("pyserve_connections_open", "Client connections.", value=counts["open_connections"])
        yield by_cause(
            "pyserve_connections_closed", "Connections ended by the service, by cause.", "cause", counts["closed"]
        )
        yield by_cause(
            "pyserve_requests_refused", "Requests refused for their framing, by cause.", "cause", counts["refused"]
        )

        yield CounterMetricFamily(
            "pyserve_answers_broken", "Answers whose clients went away.", value=counts["broken_answers"]
        )
        yield CounterMetricFamily("pyserve_workers_started", "Workers started.", value=counts["workers_started"])
        yield by_cause("pyserve_workers_ended", "Workers that ended, by cause.", "cause", counts["workers_ended"])
        yield GaugeMetricFamily("pyserve_workers_ready", "Workers that take requests.", value=counts["workers_ready"])
        yield GaugeMetricFamily("pyserve_ready", "1 when /readyz answers 200.", value=int(counts["ready"]))
        yield by_cause("pyserve_reloads", "Reloads of the model, by result.", "result", counts["reloads"])

        model = GaugeMetricFamily("pyserve_model_info", "The model that is served.", labels=["name", "sha256"])
        model.add_metric([counts["model_name"], counts["model_sha256"]], 1)
        yield model
        yield GaugeMetricFamily(
            "pyserve_model_loaded_timestamp_seconds", "When the model was loaded.", value=counts["model_loaded_at"]
        )
        resident = GaugeMetricFamily("pyserve_worker_resident_bytes", "Memory of a worker.", labels=["pid"])
        for pid, size in counts["resident_bytes"]:
            resident.add_metric([str(pid)], size)
        yield resident


def by_cause(name: str, documentation: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    """Return a counter with one label."""
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def histogram(name: str, documentation: str, summary: tuple[list[int], float]) -> HistogramMetricFamily:
    """Return a histogram with the bounds of ``_metrics``."""
    counts, total = summary
    names = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    return HistogramMetricFamily(name, documentation, buckets=list(zip(names, counts, strict=True)), sum_value=total)


class LivezResource:
    """``/livez``: a process answers at all."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200."""
        resp.data = b'{"status":"alive"}'

    on_head = on_get


class ReadyzResource:
    """``/readyz``: the service takes requests, which it does not while it starts and while it stops."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200 or 503."""
        if not self._metrics.is_ready():
            state = self._metrics.service()
            raise falcon.HTTPServiceUnavailable(description=f"the service is not ready, it is {state}")
        resp.data = b'{"status":"ready"}'

    on_head = on_get


class MetricsResource:
    """``/metrics``, in Prometheus' text format."""

    def __init__(self, metrics: Metrics) -> None:
        self._collector = ServiceCollector(metrics)

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the sums of all workers."""
        resp.data = generate_latest(self._collector)
        resp.content_type = CONTENT_TYPE_PLAIN_0_0_4

    on_head = on_get


def add_routes(app: "falcon.App[falcon.Request, falcon.Response]", metrics: Metrics) -> None:
    """Add the routes of health and metrics to an application."""
    app.add_route("/livez", LivezResource())
    app.add_route("/readyz", ReadyzResource(metrics))
    app.add_route("/metrics", MetricsResource(metrics))
