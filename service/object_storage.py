"""Uploads and results in an S3 bucket, so that API and workers need not share a disk.

    <bucket>/<prefix>/uploads/<job>/<file>
    <bucket>/<prefix>/results/<job>/<attempt>/...      the artifacts of one attempt
    <bucket>/<prefix>/results/<job>/published.json     written last: which attempt is the result, and its files

A result is what its `published.json` names; without one there is none, whatever objects lie there. What is being
written, or read by native code, lies in a folder of the local disk meanwhile, laid out as in `LocalStorage`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, BinaryIO, cast

from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from pydantic import BaseModel

from service.errors import ArtifactNotFound, StorageUnavailable, UploadGone
from service.jobs.job import FilesNeeded, is_job_id
from service.storage import LocalStorage, StoredFile, age_seconds, checked_job_id, checked_upload_name, remove

_MARKER = "published.json"
_SPOOLED_FOR_SECONDS = 86400.0  # no upload takes so long: its process has died
_CHUNK_BYTES = 4 * 1024**2
# Credentials, region and endpoint come from where every AWS client looks for them.
_CLIENT = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}


class _Published(BaseModel):
    """The content of a result's marker."""

    attempt: int
    files: dict[str, int]  #: name, size in bytes


@dataclass(frozen=True)
class _RemoteFile(StoredFile):
    fs: AbstractFileSystem
    key: str

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, some MiB at a time."""
        for begin in range(start, stop, _CHUNK_BYTES):
            with _translated_errors():
                chunk: bytes = self.fs.cat_file(self.key, start=begin, end=min(begin + _CHUNK_BYTES, stop))
            yield chunk


class ObjectStorage(LocalStorage):
    """Files of jobs in a bucket; every method may be called from any thread or process, but not across a fork.

    Args:
        root: folder of this machine for what is on its way.
        url: `s3://bucket/prefix`.
    """

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self._spool = root / "spool"
        with _translated_errors():
            self._spool.mkdir(exist_ok=True, mode=0o700)
            self._fs, self._prefix = url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True, config_kwargs=_CLIENT
            )

    # Uploads

    @contextmanager
    def open_upload(self, job_id: str, filename: str) -> Iterator[BinaryIO]:
        """As in LocalStorage; the file goes to the bucket when the block ends well."""
        key = self._upload_key(job_id, checked_upload_name(filename))
        with _translated_errors(), NamedTemporaryFile(dir=self._spool) as file:
            yield cast("BinaryIO", file)
            file.flush()
            self._fs.put_file(file.name, key)

    def fetch_upload(self, job_id: str, attempt: int) -> Path:
        """The upload as files of this machine, which vanish with the attempt."""
        folder = self._attempt(job_id, attempt) / "upload"
        with _translated_errors():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            keys = self._keys(self._upload_key(job_id))
            for key in keys:
                self._fs.get_file(key, str(folder / key.rpartition("/")[2]))
        if not keys:
            raise UploadGone("The upload of this job is no longer stored; submit the study again.")
        return next(folder.iterdir()) if len(keys) == 1 else folder

    def delete_upload(self, job_id: str) -> None:
        """Remove the job's upload; nothing happens where there is none."""
        super().delete_upload(job_id)
        self._remove(self._upload_key(job_id))

    # Results

    def publish_result(self, job_id: str, attempt: int) -> None:
        """Make the attempt's artifacts the job's result, by the marker that is written when all of them are stored."""
        finished = self._attempt(job_id, attempt) / "result"
        files = {path.relative_to(finished).as_posix(): path for path in finished.rglob("*") if path.is_file()}
        with _translated_errors():
            for name, path in files.items():
                self._fs.put_file(str(path), self._result_key(job_id, str(attempt), name))
        self._publish(job_id, _Published(attempt=attempt, files={n: p.stat().st_size for n, p in files.items()}))

    def copy_result(self, source_id: str, job_id: str, attempt: int) -> None:
        """As in LocalStorage; the bucket copies, and no byte comes here."""
        source = self._published(source_id)
        with _translated_errors():
            for name in source.files:
                key = self._result_key(source_id, str(source.attempt), name)
                self._fs.cp_file(key, self._result_key(job_id, str(attempt), name))
        self._publish(job_id, _Published(attempt=attempt, files=source.files))

    def artifact(self, job_id: str, name: str) -> StoredFile:
        """A published artifact such as `masks/liver.nii.gz`."""
        published = self._published(job_id)
        if name not in published.files:
            raise ArtifactNotFound(f"This job has no artifact {name[:80]!r}.")
        key = self._result_key(job_id, str(published.attempt), name)
        return _RemoteFile(size=published.files[name], path=None, fs=self._fs, key=key)

    @contextmanager
    def result_files(self, job_id: str) -> Iterator[Path]:
        """As in LocalStorage; they are brought here, and removed afterwards."""
        published = self._published(job_id)
        with _translated_errors(), TemporaryDirectory(dir=self._spool) as folder:
            for name in published.files:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._result_key(job_id, str(published.attempt), name), str(path))
            yield Path(folder)

    def delete_result(self, job_id: str) -> None:
        """Remove the job's artifacts, the marker first; nothing happens where there are none."""
        super().delete_result(job_id)
        self._remove(self._result_key(job_id, _MARKER))
        self._remove(self._result_key(job_id))

    # Sweeping

    def job_ids(self) -> set[str]:
        """Ids of the jobs that have any file in the bucket or on this machine."""
        keys = [key for area in ("uploads", "results") for key in self._children(area)]
        names = {key.rstrip("/").rpartition("/")[2] for key in keys}
        return super().job_ids() | {name for name in names if is_job_id(name)}

    def sweep_orphans(self, needed: Mapping[str, FilesNeeded], *, min_age_seconds: float = 3600.0) -> int:
        """As in LocalStorage, on this machine and in the bucket."""
        removed = super().sweep_orphans(needed, min_age_seconds=min_age_seconds)
        removed += sum(remove(path) for path in self._spool.iterdir() if age_seconds(path) >= _SPOOLED_FOR_SECONDS)
        for area, delete in (("uploads", self.delete_upload), ("results", self.delete_result)):
            for key in self._children(area):
                job_id = key.rstrip("/").rpartition("/")[2]
                if is_job_id(job_id) and self._is_garbage(area, key, needed.get(job_id), min_age_seconds):
                    delete(job_id)
                    removed += 1
        return removed

    # Inside

    def _is_garbage(self, area: str, key: str, needed: FilesNeeded | None, min_age_seconds: float) -> bool:
        if needed is None:
            return self._age_seconds(key) >= min_age_seconds
        return needed is FilesNeeded.NONE or (needed is FilesNeeded.RESULT and area == "uploads")

    def _publish(self, job_id: str, published: _Published) -> None:
        with _translated_errors():
            self._fs.pipe_file(self._result_key(job_id, _MARKER), published.model_dump_json().encode())
            result, kept = self._result_key(job_id), self._result_key(job_id, str(published.attempt), "")
            for key in self._keys(result):
                if not key.startswith(kept) and not key.endswith(f"/{_MARKER}"):
                    self._fs.rm_file(key)  # of an attempt that died when it had published

    def _published(self, job_id: str) -> _Published:
        with _translated_errors():
            try:
                marker = self._fs.cat_file(self._result_key(job_id, _MARKER))
            except FileNotFoundError as error:
                raise ArtifactNotFound("This job has no stored result.") from error
        return _Published.model_validate_json(marker)

    def _remove(self, key: str) -> None:
        with _translated_errors():
            for found in self._keys(key):
                self._fs.rm_file(found)

    def _keys(self, key: str) -> list[str]:
        """Every object at or below a key."""
        return [str(found) for found in self._fs.find(key)]

    def _children(self, area: str) -> list[str]:
        with _translated_errors():
            try:
                return [str(key) for key in self._fs.ls(f"{self._prefix}/{area}", detail=False)]
            except FileNotFoundError:
                return []

    def _age_seconds(self, key: str) -> float:
        """Since the latest object below the key was written."""
        with _translated_errors():
            found: dict[str, Any] = self._fs.find(key, detail=True)
        written = [entry["LastModified"] for entry in found.values() if "LastModified" in entry]
        return (datetime.now(UTC) - max(written)).total_seconds() if written else 0.0

    def _upload_key(self, job_id: str, *names: str) -> str:
        return "/".join((self._prefix, "uploads", checked_job_id(job_id), *names))

    def _result_key(self, job_id: str, *names: str) -> str:
        return "/".join((self._prefix, "results", checked_job_id(job_id), *names))


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn what the bucket, or the disk here, refuses into a typed error."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "it refused"
        raise StorageUnavailable(f"The object storage cannot be used ({reason}); tell the operator.") from error
    except BotoCoreError as error:
        raise StorageUnavailable("The object storage cannot be reached at the moment; try again shortly.") from error
