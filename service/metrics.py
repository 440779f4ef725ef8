"""What a worker tells Prometheus, on a port of its own: how its jobs ended, how long their stages took, its GPUs.

The API has its own metrics (`service.api.metrics`), the gauges of the job table among them.
"""

import sys
from collections.abc import Iterator, Mapping

import structlog
from prometheus_client import REGISTRY, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_STAGE_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

WINDOWS = Counter("viscera_windows", "Windows that went through the network.")
STAGE_SECONDS = Histogram(
    "viscera_job_stage_seconds", "Seconds of each stage of a job.", ["stage"], buckets=_STAGE_BUCKETS
)
JOBS_ENDED = Counter("viscera_jobs_ended", "Jobs that this worker has brought to an end.", ["status", "code"])

log = structlog.get_logger(__name__)


def observe_job(status: str, code: str | None, stage_seconds: Mapping[str, float]) -> None:
    """Count a job that has ended, with the code of its error when it failed."""
    JOBS_ENDED.labels(status, code or "").inc()
    for stage, seconds in stage_seconds.items():
        STAGE_SECONDS.labels(stage).observe(seconds)


class GpuMemoryCollector(Collector):
    """Memory of each GPU, as the driver tells it; nothing where there is no GPU, or torch is not loaded yet."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges."""
        used = GaugeMetricFamily("viscera_gpu_memory_used_bytes", "Memory in use, by anyone.", labels=["gpu"])
        total = GaugeMetricFamily("viscera_gpu_memory_bytes", "Memory of the GPU.", labels=["gpu"])
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            for gpu in range(torch.cuda.device_count()):
                free_bytes, all_bytes = torch.cuda.mem_get_info(gpu)
                used.add_metric([str(gpu)], all_bytes - free_bytes)
                total.add_metric([str(gpu)], all_bytes)
        yield from (used, total)


def serve_metrics(host: str, port: int) -> None:
    """Answer Prometheus from a thread for as long as the process lives; a port that is taken is logged."""
    try:
        start_http_server(port, host)
    except OSError as error:
        log.error("metrics.not_served", host=host, port=port, reason=error.strerror)
        return
    REGISTRY.register(GpuMemoryCollector())
