"""A worker: a Celery prefork parent with a few children that run a job at a time. `python -m service.worker`.

The children share one GPU or one share of the cores, and take turns at the network (`service.neighbours`); for more of
either start more workers.
"""

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog
from celery.signals import setup_logging

from service.jobs.queue import make_celery
from service.neighbours import share
from service.parent_watch import die_with_process
from service.settings import Settings
from service.supervisor import EmbeddedWorker
from service.telemetry import configure_logging

log = structlog.get_logger(__name__)


def run_worker(settings: Settings) -> int:
    """Run jobs until SIGTERM, which lets the job at hand finish; returns the exit status.

    The settings must also be in the environment, where the child reads them.
    """
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    setup_logging.connect(_keep_our_logging)
    share(settings.jobs_at_once)
    app = make_celery(settings)
    app.set_current()
    app.set_default()
    with _served_metrics(settings):
        worker = app.Worker(
            hostname=f"viscera-{os.getpid()}@{socket.gethostname()}",
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        log.info("worker.starting", pid=os.getpid())
        worker.start()
    return int(worker.exitcode or 0)


@contextmanager
def _served_metrics(settings: Settings) -> Iterator[None]:
    """Prometheus is answered in the block, where the settings want that."""
    if settings.worker_metrics_port is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="viscera-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when service.metrics is imported, as the tasks do
        from service.metrics import serve_metrics

        serve_metrics(settings.worker_metrics_host, settings.worker_metrics_port, Path(folder))
        yield


def start_embedded_worker(settings: Settings) -> EmbeddedWorker:
    """A worker in a process of its own, started again when it dies; call `stop()` on what is returned."""
    worker = EmbeddedWorker(settings)
    worker.start()
    return worker


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the worker process."""
    parser = argparse.ArgumentParser(prog="python -m service.worker", description=run_worker.__doc__)
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this parent process ends")
    parent: int | None = parser.parse_args(arguments).parent
    if parent is not None:
        die_with_process(parent)
    return run_worker(Settings())


def _keep_our_logging(**_: object) -> None:
    """A receiver of this signal keeps Celery from configuring the logging itself."""


if __name__ == "__main__":
    sys.exit(main())
