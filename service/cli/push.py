"""`viscera push`: sends the result of a job again, when the peer was away while the job ran."""

from collections.abc import Sequence
from contextlib import closing

from service.cli.console import OUT, print_problem
from service.errors import ResultNotReady
from service.exchange.peers import find_peer
from service.exchange.push import push_result
from service.jobs.job import JobStatus
from service.jobs.store import JobStore
from service.progress import no_progress
from service.settings import Settings
from service.storage import open_storage
from service.telemetry import configure_logging


def push(job_id: str, destinations: Sequence[str]) -> int:
    """Send the DICOM objects of a succeeded job to the peers; returns the exit status.

    Raises:
        JobNotFound: there is no such job.
        ResultNotReady: it has no result.
        UnknownPeer: the settings do not name the peer.
    """
    settings = Settings()
    configure_logging(as_json=settings.log_json, level=settings.log_level)
    for name in destinations:
        find_peer(settings.peers, name)
    with closing(JobStore(settings.database_url)) as store:
        job = store.get(job_id)
    if job.status is not JobStatus.SUCCEEDED:
        raise ResultNotReady(f"Job {job.id} is {job.status}; only the result of a succeeded job can be sent.")
    with open_storage(settings.data_dir, settings.storage_url).result_files(job.id) as folder:
        notices = push_result(folder, destinations, settings, no_progress)
    for notice in notices:
        print_problem(notice["message"])
    if not notices:
        OUT.print(f"Sent to {', '.join(destinations)}.")
    return 2 if notices else 0
