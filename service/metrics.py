"""What a worker tells Prometheus, on a port of its own: how its jobs ended, how long their stages took, its GPUs.

Its processes count in files of one folder, and their parent, which outlives them, adds up and answers.

The API has its own metrics (`service.api.metrics`), the gauges of the job table among them.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

_STAGE_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

WINDOWS = Counter("viscera_windows", "Windows that went through the network.")
STAGE_SECONDS = Histogram(
    "viscera_job_stage_seconds", "Seconds of each stage of a job.", ["stage"], buckets=_STAGE_BUCKETS
)
JOBS_ENDED = Counter("viscera_jobs_ended", "Jobs that this worker has brought to an end.", ["status", "code"])
GPU_MEMORY_USED = Gauge(
    "viscera_gpu_memory_used_bytes", "Memory in use, by anyone.", ["gpu"], multiprocess_mode="mostrecent"
)
GPU_MEMORY = Gauge("viscera_gpu_memory_bytes", "Memory of the GPU.", ["gpu"], multiprocess_mode="mostrecent")

log = structlog.get_logger(__name__)


def observe_job(status: str, code: str | None, stage_seconds: Mapping[str, float]) -> None:
    """Count a job that has ended, with the code of its error when it failed."""
    JOBS_ENDED.labels(status, code or "").inc()
    for stage, seconds in stage_seconds.items():
        STAGE_SECONDS.labels(stage).observe(seconds)


def tell_gpu_memory() -> None:
    """Note the memory of each GPU, as the driver tells it; nothing where there is none, or torch is not loaded yet."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return
    for gpu in range(torch.cuda.device_count()):
        free_bytes, all_bytes = torch.cuda.mem_get_info(gpu)
        GPU_MEMORY_USED.labels(str(gpu)).set(all_bytes - free_bytes)
        GPU_MEMORY.labels(str(gpu)).set(all_bytes)


def serve_metrics(host: str, port: int, folder: Path) -> None:
    """Answer Prometheus from a thread for as long as the process lives; a port that is taken is logged.

    Told is what the children of this process count, those that have died included: in `folder`, which
    PROMETHEUS_MULTIPROC_DIR must have named before this module was imported.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]  # it has no types
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        log.error("metrics.not_served", host=host, port=port, reason=error.strerror)
