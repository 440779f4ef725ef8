"""The child process of a worker, where jobs run: the model is loaded here, once, and kept warm.

Nothing heavy may be imported before the fork, so the segmenter is found by its name in the settings. Until the default
bundle has passed its self-test the process says `starting`; a job that comes earlier waits for it.
"""

import importlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import structlog
from celery.signals import worker_process_init, worker_process_shutdown

from service.errors import InternalError, StorageUnavailable, VisceraError
from service.jobs.job import WorkerState
from service.jobs.owner import current_owner
from service.jobs.store import JobStore
from service.metrics import tell_gpu_memory
from service.parent_watch import die_with_process
from service.settings import Settings
from service.storage import open_storage
from service.tasks import Segmenter, WorkContext, install_context
from service.tracing import open_tracing
from service.waiting import once_available

_BEAT_SECONDS = 5.0
_FAILED_START_SECONDS = 5.0
_STORAGE_PAUSES = (5.0, 15.0, 45.0)

log = structlog.get_logger(__name__)


class WarmProcess:
    """This process as the job table sees it: loads the model, then gives a sign of life every few seconds."""

    def __init__(self, context: WorkContext) -> None:
        self._context = context
        self._ended = threading.Event()
        self._reporting = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="warm-process", daemon=True)

    def start(self) -> None:
        """Begin to load the model."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye to the job table."""
        self._ended.set()
        with self._reporting:  # no report may come after the goodbye
            try:
                self._context.store.forget_worker(self._context.owner)
            except StorageUnavailable:
                log.warning("worker.not_forgotten")
        self._context.tracing.close()

    def _live(self) -> None:
        self._report(WorkerState.STARTING, "")
        state, detail = self._warm_up()
        self._report(state, detail)
        while not self._ended.wait(_BEAT_SECONDS):
            self._report(state, detail)
            tell_gpu_memory()

    def _warm_up(self) -> tuple[WorkerState, str]:
        try:
            self._context.segmenter.warm_up()
        except VisceraError as problem:
            log.error("worker.unhealthy", code=problem.code, detail=problem.detail)
            return WorkerState.UNHEALTHY, f"{problem.title}: {problem.detail}"
        except Exception:
            log.exception("worker.unhealthy", code=InternalError.code)
            return WorkerState.UNHEALTHY, "The default model could not be loaded; see the worker's log."
        log.info("worker.ready")
        return WorkerState.READY, ""

    def _report(self, state: WorkerState, detail: str) -> None:
        with self._reporting:
            if self._ended.is_set():
                return
            try:
                self._context.store.report_worker(self._context.owner, state, detail)
            except StorageUnavailable:
                log.warning("worker.not_reported", state=state)


def _kill_process() -> None:
    """End this process, whatever its other threads do; its parent starts a new one."""
    os.kill(os.getpid(), signal.SIGKILL)


def open_segmenter(settings: Settings) -> Segmenter:
    """The segmenter that the settings name."""
    module, _, function = settings.segmenter.partition(":")
    factory = cast("Callable[[Settings], Segmenter]", getattr(importlib.import_module(module), function))
    return factory(settings)


_process: WarmProcess | None = None


@worker_process_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def start_process(**_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    """Prepare this freshly forked process; tasks come afterwards.

    Celery gives tasks to a process whose preparation failed, too: such a one ends, and its parent starts another.
    """
    global _process
    die_with_process(os.getppid())
    try:
        settings = Settings()
        context = _open_context(settings)
    except Exception:
        log.exception("worker.not_started")
        time.sleep(_FAILED_START_SECONDS)
        _kill_process()
        raise
    install_context(context)
    _process = WarmProcess(context)
    _process.start()


def _open_context(settings: Settings) -> WorkContext:
    store = once_available(lambda: JobStore(settings.database_url))
    storage = once_available(lambda: open_storage(settings.data_dir, settings.storage_url))
    # No sweeper may see this machine's scratch folder when uploads and results are in a bucket.
    once_available(lambda: storage.sweep_scratch(store.files_needed))
    return WorkContext(
        store=store,
        storage=storage,
        segmenter=open_segmenter(settings),
        owner=current_owner(),
        lease_seconds=settings.lease_seconds,
        settings=settings,
        time_limit_seconds=settings.job_time_limit_seconds,
        keep_results_for=settings.keep_results_for,
        storage_pauses=_STORAGE_PAUSES,
        kill_process=_kill_process,
        tracing=open_tracing(settings, "viscera-worker"),
    )


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # Celery has no types
def stop_process(**_: Any) -> None:  # noqa: ANN401 - Celery's signal arguments
    """The process is about to end in good order."""
    if _process is not None:
        _process.stop()
