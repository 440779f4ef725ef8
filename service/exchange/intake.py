"""Instances that senders store here one by one become jobs: one for each study and sender.

The job exists from the first instance on and is held (`service.jobs.held`) until nothing more of the study has come for
the quiet time of the settings; the sweeper then dispatches it.
"""

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import structlog

from service.catalog import Catalog
from service.errors import StudyClosed, UploadTooLarge
from service.exchange.peers import find_peer
from service.exchange.plan import Exchange
from service.jobs.held import HeldJob, HeldJobs
from service.jobs.job import DEFAULT_TENANT, Job
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage

_HOLDS_PER_QUIET_TIME = 4

log = structlog.get_logger(__name__)


class Intake:
    """Where received instances go; safe for threads, and several processes may have one over the same table."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        storage: LocalStorage,
        catalog: Catalog,
        tenant: str = DEFAULT_TENANT,
        key_id: str | None = None,
    ) -> None:
        """Over a table and a storage; `tenant` and `key_id` are those of the jobs that begin."""
        self._settings = settings
        self._tenant = tenant
        self._key_id = key_id
        self._storage = storage
        self._catalog = catalog
        self._held = HeldJobs(store, settings.study_quiet_seconds)

    def open(self, sender: str, study_uid: str) -> Job:
        """The job that collects this study of this sender, held from now on.

        Raises:
            ModelNotFound, UnknownLabel, UnknownPeer: the settings for received studies name what is not there.
            UploadTooLarge: the study has as many files as one job may have.
        """
        job = self._held.open(_key(self._tenant, sender, study_uid), self._new_job)
        if job.upload_files >= self._settings.max_upload_files:
            raise UploadTooLarge(f"The study exceeds the limit of {self._settings.max_upload_files} files.")
        return job

    def _new_job(self) -> HeldJob:
        settings = self._settings
        model = self._catalog.find()
        model.require_targets(settings.received_choices.targets)
        for name in settings.received_push:
            find_peer(settings.peers, name)
        exchange = Exchange(push=tuple(settings.received_push))
        return HeldJob(model.id, settings.received_choices, exchange, self._tenant, self._key_id)

    @contextmanager
    def instance(self, job: Job) -> "Iterator[InstanceFile]":
        """A file for one instance of the job; it counts when the block ends well, and vanishes when it raises.

        Raises:
            StudyClosed: the job was canceled, or has begun because this instance took too long.
            UploadTooLarge: the study has more bytes than one job may have.
            StorageUnavailable: the disk is full or away.
        """
        with self._storage.open_upload(job.id, f"{uuid.uuid4().hex}.dcm") as file:
            written = InstanceFile(
                file,
                self._held,
                job.id,
                self._settings.max_upload_bytes - job.upload_bytes,
                self._settings.study_quiet_seconds / _HOLDS_PER_QUIET_TIME,
            )
            yield written
            written.hold_on()
        if not self._held.hold_on(job.id, files=1, size=written.bytes):
            raise _closed()


class InstanceFile:
    """One instance on its way to storage."""

    def __init__(self, file: BinaryIO, held: HeldJobs, job_id: str, left_bytes: int, every_seconds: float) -> None:
        self._file = file
        self._held = held
        self._job_id = job_id
        self._left = left_bytes
        self._every_seconds = every_seconds
        self._held_at = time.monotonic()
        self.bytes = 0

    def write(self, piece: bytes) -> None:
        """The next bytes; the job is held while they come."""
        self.bytes += len(piece)
        if self.bytes > self._left:
            raise UploadTooLarge("The study exceeds the number of bytes that one job may have.")
        self._file.write(piece)
        if time.monotonic() - self._held_at > self._every_seconds:
            self.hold_on()

    def hold_on(self) -> None:
        """Keep the job waiting.

        Raises:
            StudyClosed: it waits no longer.
        """
        self._held_at = time.monotonic()
        if not self._held.hold_on(self._job_id):
            raise _closed()


def _closed() -> StudyClosed:
    return StudyClosed("The job of this study was canceled or has begun meanwhile. Send the instance again.")


def _key(*parts: str) -> str:
    """The study's place in the table, which tells nobody the study."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
