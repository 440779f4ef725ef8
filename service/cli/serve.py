"""`viscera serve`: API, worker and sweeper under one command, with the embedded queue or the broker of the settings."""

import gc
import signal
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from service.cli.console import OUT, print_problem
from service.cli.keys import first_key
from service.cli.local_key import read_local_key
from service.jobs.keys import KeyStore
from service.jobs.queue import JobQueue
from service.jobs.store import JobStore
from service.main import create_app
from service.settings import Settings
from service.storage import open_storage
from service.sweeper import Sweeper
from service.telemetry import configure_logging
from service.worker import start_embedded_worker

BACKLOG = 2048  # connections that wait until the API answers; uvicorn's own default
LONGEST_ANSWER_SECONDS = 10  # how long requests under way may go on after a signal

log = structlog.get_logger(__name__)


def serve(*, host: str | None, port: int | None, data_dir: Path | None, api_only: bool = False) -> int:
    """Serve until SIGINT or SIGTERM; the job at hand then has the settings' grace period. Returns the exit status.

    Args:
        host, port, data_dir: in place of the environment's.
        api_only: workers and the sweeper run elsewhere.

    Raises:
        StorageUnavailable: the database or the data folder cannot be used.
    """
    chosen = {"host": host, "port": port, "data_dir": data_dir}
    # A mixed dict: the settings check each value.
    settings = Settings(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]  # pydantic checks them
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    try:
        listening = _listen(settings.host, settings.port)
    except OSError as error:
        print_problem(f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --port.")
        return 2
    with ExitStack() as opened:
        opened.enter_context(listening)
        store = opened.enter_context(closing(JobStore(settings.database_url)))
        queue = opened.enter_context(closing(JobQueue(settings, store)))
        storage = open_storage(settings.data_dir, settings.storage_url)
        if not api_only:
            sweeper = Sweeper(settings, store, storage, queue)
            sweeper.rebuild_queue()
            worker = start_embedded_worker(settings)
            opened.callback(worker.stop)
            sweeper.start()
            opened.callback(sweeper.stop)
        application = create_app(settings, store, storage, queue.dispatch)
        key = first_key(settings, KeyStore(store.engine))
        address = "http://{}:{}".format(*listening.getsockname()[:2])
        OUT.print(f"Viscera is at {address} (data in {settings.data_dir}). Ctrl-C stops it.", soft_wrap=True)
        _say_who_may_enter(settings, address, key)
        # What is there by now stays: a collection that visits it holds up every request for a fifth of a second.
        gc.freeze()
        _run_until_signal(
            application,
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=LONGEST_ANSWER_SECONDS,
            ),
            listening,
        )
        log.info("service.stopping", grace_seconds=settings.shutdown_grace_seconds)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens before anything else starts: a taken port is a plain error, and early clients wait."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _say_who_may_enter(settings: Settings, address: str, first: str | None) -> None:
    """The first key, this once; later, at a terminal, the page's address with the kept key, for whoever sits there."""
    if settings.auth == "none":
        OUT.print("It asks for no key: whoever reaches this address may do everything.", soft_wrap=True)
        return
    if first is not None:
        kept = settings.local_key_file
        OUT.print(f"First API key, shown this once: {first}", soft_wrap=True, markup=False)
        OUT.print(f"It is kept in {kept} for commands on this machine.", soft_wrap=True, markup=False)
    if key := first or (read_local_key(settings.data_dir) if OUT.is_terminal else None):
        OUT.print(f"The page: {address}/#key={key}", soft_wrap=True, markup=False)


class _Server(uvicorn.Server):
    """Sends home who waits for a job to change, before it waits for requests under way."""

    def __init__(self, config: uvicorn.Config, application: FastAPI) -> None:
        super().__init__(config)
        self._application = application

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._application.state.services.watch.close()
        await super().shutdown(sockets)


def _run_until_signal(application: FastAPI, config: uvicorn.Config, listening: socket.socket) -> None:
    """Serve; a signal ends this function and not the process, so that the worker can be stopped in good order.

    uvicorn raises the signal it received once more when it has shut down, for whoever handled it before.
    """

    def received(_signal: int, _frame: FrameType | None) -> None:
        return None

    before = {number: signal.signal(number, received) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Server(config, application).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
