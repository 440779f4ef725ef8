"""What the API tells Prometheus: its own counters, and gauges of the job table, read when somebody asks."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from service.jobs.job import WorkerState
from service.jobs.store import JobStore

CONTENT_TYPE = CONTENT_TYPE_LATEST


class ApiMetrics:
    """The metrics of one application."""

    def __init__(self, store: JobStore) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(JobTableCollector(store))
        self.upload_bytes = Counter("viscera_upload_bytes", "Bytes of accepted uploads.", registry=self._registry)

    def render(self) -> bytes:
        """Everything in the text format of Prometheus.

        Raises:
            StorageUnavailable: the job table cannot be read.
        """
        return generate_latest(self._registry)


class JobTableCollector(Collector):
    """Jobs and workers as the table has them at this moment; every API process tells the same."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: registering must not read the table."""
        yield from ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        jobs = GaugeMetricFamily("viscera_jobs", "Jobs in the table, by status.", labels=["status"])
        for status, count in self._store.counts().items():
            jobs.add_metric([status], count)
        yield jobs
        depth = GaugeMetricFamily("viscera_queue_depth", "Jobs that wait, by priority.", labels=["priority"])
        for priority, count in self._store.queue_depth().items():
            depth.add_metric([priority], count)
        yield depth
        failures = GaugeMetricFamily("viscera_jobs_failed", "Failed jobs in the table, by error.", labels=["code"])
        for code, count in self._store.failures().items():
            failures.add_metric([code], count)
        yield failures
        workers = GaugeMetricFamily("viscera_workers", "Workers that are alive, by state.", labels=["state"])
        states = [worker.state for worker in self._store.workers()]
        for state in WorkerState:
            workers.add_metric([state], states.count(state))
        yield workers
