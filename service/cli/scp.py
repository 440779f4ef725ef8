"""`viscera scp`: takes studies from the DICOM network for the job table and storage of the settings."""

import signal
import threading
from contextlib import closing

import structlog

from service.catalog import Catalog
from service.cli.console import OUT, print_problem
from service.exchange.intake import Intake
from service.exchange.scp import StoreProvider
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import open_storage
from service.telemetry import configure_logging

log = structlog.get_logger(__name__)


def listen() -> int:
    """Take C-STORE until SIGINT or SIGTERM; returns the exit status.

    Raises:
        StorageUnavailable: the database or the data folder cannot be used.
    """
    settings = Settings()
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    if not settings.scp_callers:
        print_problem(
            "No AE title may send here yet. Name those that may in the setting VISCERA_SCP_CALLERS, a JSON list such "
            'as ["CT1", "PACS"].'
        )
        return 2
    with closing(JobStore(settings.database_url)) as store:
        intake = Intake(
            settings, store, open_storage(settings.data_dir, settings.storage_url), Catalog.from_settings(settings)
        )
        provider = StoreProvider(settings, intake)
        try:
            port = provider.start()
        except OSError as error:
            print_problem(
                f"Cannot listen on {settings.scp_host}:{settings.scp_port} ({error.strerror}); choose another "
                "VISCERA_SCP_PORT."
            )
            return 2
        OUT.print(f"{settings.ae_title} takes CT at {settings.scp_host}:{port}. Ctrl-C stops it.", soft_wrap=True)
        _wait_for_signal()
        provider.stop()
    return 0


def _wait_for_signal() -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signal, _frame: ended.set())
    ended.wait()
