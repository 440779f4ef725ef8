"""The worker that `viscera serve` keeps: its own process, started again with back-off, gone when the server is gone."""

import os
import signal
import subprocess
import sys
import threading
import time

import structlog

from service.errors import StorageUnavailable
from service.jobs.owner import is_dead
from service.jobs.store import JobStore
from service.settings import Settings

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_DYING_SECONDS = 2.0  # where pid 1 reaps no orphans, their remains stay in the group
_HEALTHY_SECONDS = 60.0  # a worker that lived so long did not die of its start

log = structlog.get_logger(__name__)


class EmbeddedWorker:
    """Starts, watches and stops one worker process.

    The worker has its own session, so that Ctrl-C at the terminal reaches only the server; and it ends by itself when
    the server is killed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._spawning = threading.Lock()  # no worker is started behind the back of `stop`
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_alive, name="embedded-worker", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id of the worker; None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """True while a worker process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the worker; returns at once."""
        self._process = self._spawn()
        self._thread.start()

    def stop(self) -> None:
        """Let the job at hand finish within the grace period, else kill the worker and hand the job back."""
        with self._spawning:
            self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(self._settings.shutdown_grace_seconds)
            except subprocess.TimeoutExpired:
                log.warning("worker.killed", reason="shutdown")
        if process is not None:
            _kill_group(process)
            self._hand_back()
        self._thread.join()

    def _keep_alive(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while (process := self._process) is not None:
            started = time.monotonic()
            status = process.wait()
            if self._stopping.is_set():
                return
            _kill_group(process)
            if time.monotonic() - started >= _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.error("worker.died", status=status, restart_in_seconds=pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            with self._spawning:
                if self._stopping.is_set():
                    return
                self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service.worker", "--parent", str(os.getpid())]
        environment = {**os.environ, **self._settings.to_environment()}
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - this interpreter

    def _hand_back(self) -> None:
        """Requeue what the stopped worker held, without counting the attempt, and forget its processes."""
        try:
            store = JobStore(self._settings.database_url)
            dead = {owner for owner in store.owners() if is_dead(owner)}
            if handed_back := store.hand_back(dead):
                log.info("job.handed_back", job_ids=handed_back)
            for owner in dead:
                store.forget_worker(owner)
            store.close()
        except StorageUnavailable:
            log.warning("job.not_handed_back")  # the lease runs out


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker and its children, which share its process group, and wait until they are gone."""
    deadline = time.monotonic() + _DYING_SECONDS
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    except ProcessLookupError:
        return  # nobody left
