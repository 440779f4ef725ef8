"""Uploads in, artifacts out: a folder on a local disk. `service.object_storage` puts them into a bucket instead.

    uploads/<job>/<file>                 written as <file>.part, fsynced, renamed
    scratch/<job>/<attempt>/result/...   what an attempt writes; removed with it
    scratch/<job>/<attempt>/tmp/...      its temporary files
    results/<job>/...                    appears by one rename of an attempt's result, or not at all

A crash at any point leaves only files that `sweep_orphans` knows how to remove.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from service.errors import ArtifactNotFound, StorageUnavailable, UploadGone
from service.jobs.job import FilesNeeded, is_job_id

PART_SUFFIX = ".part"
# One file name: no separator, no leading dot, nothing a shell or Windows reads otherwise.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_CHUNK_BYTES = 1024**2
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class StoredFile:
    """A published artifact."""

    size: int  #: in bytes
    path: Path | None  #: where it lies on this machine; None: elsewhere

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, some at a time.

        Raises:
            StorageUnavailable: they cannot be read now.
        """
        assert self.path is not None
        with _translated_errors(), self.path.open("rb") as file:
            file.seek(start)
            while (left := stop - file.tell()) > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                yield chunk

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self.chunks(0, self.size))


class LocalStorage:
    """Files of jobs under one root folder; every method may be called from any thread or process.

    A folder is only ever named by a job id that `new_job_id` gave, so no name of a caller becomes a path.
    Raises `StorageUnavailable` where the disk is full or the folder cannot be written, and `ValueError` for a malformed
    job id or upload name: those are mistakes of the program, not of the caller of the API.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._uploads = root / "uploads"
        self._results = root / "results"
        self._scratch = root / "scratch"
        with _translated_errors():
            for folder in (self._uploads, self._results, self._scratch):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    # Uploads

    def upload_dir(self, job_id: str) -> Path:
        """Folder of the job's upload; it exists once a file was opened for it."""
        return self._uploads / checked_job_id(job_id)

    @contextmanager
    def open_upload(self, job_id: str, filename: str) -> Iterator[BinaryIO]:
        """A file to write one uploaded file to; it gets its name when the block ends well and vanishes when it raises.

        Args:
            filename: plain name without folders, of letters, digits, `_`, `-` and `.`, such as `00001.nii.gz`.
        """
        folder = self.upload_dir(job_id)
        part = folder / (checked_upload_name(filename) + PART_SUFFIX)
        try:
            with _translated_errors():
                folder.mkdir(exist_ok=True, mode=0o700)
                with part.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(folder / filename)
                _fsync_folder(folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def fetch_upload(self, job_id: str, attempt: int) -> Path:
        """What an attempt reads: the upload's only file, or its folder when there are several.

        Raises:
            UploadGone: nothing is stored for the job.
        """
        del attempt  # nothing has to be brought here for it
        folder = self.upload_dir(job_id)
        files = [path for path in folder.iterdir() if path.suffix != PART_SUFFIX] if folder.is_dir() else []
        if not files:
            raise UploadGone("The upload of this job is no longer stored; submit the study again.")
        return files[0] if len(files) == 1 else folder

    def discard_unfinished(self, job_id: str) -> None:
        """Remove what a sender that was interrupted left behind; for the worker that has the job."""
        with _translated_errors():
            for unfinished in self.upload_dir(job_id).glob(f"*{PART_SUFFIX}"):
                unfinished.unlink(missing_ok=True)

    def delete_upload(self, job_id: str) -> None:
        """Remove the job's upload; nothing happens where there is none."""
        remove(self.upload_dir(job_id))

    # Attempts

    def begin_result(self, job_id: str, attempt: int) -> Path:
        """An empty folder for the artifacts of one attempt; what earlier attempts of the job left is removed."""
        remove(self._scratch / checked_job_id(job_id))
        result = self._attempt(job_id, attempt) / "result"
        with _translated_errors():
            result.mkdir(parents=True, mode=0o700)
        return result

    def temporary_dir(self, job_id: str, attempt: int) -> Path:
        """A folder for temporary files of one attempt, removed with it."""
        folder = self._attempt(job_id, attempt) / "tmp"
        with _translated_errors():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def publish_result(self, job_id: str, attempt: int) -> None:
        """Make the attempt's artifacts the job's result, in one rename, after they are safely on the disk.

        Only the owner of the job's lease may call this. What an earlier attempt published before it died is replaced.
        """
        finished = self._attempt(job_id, attempt) / "result"
        result = self.result_dir(job_id)
        with _translated_errors():
            _fsync_tree(finished)
            if result.exists():
                stale = self._attempt(job_id, attempt) / "stale"
                result.rename(stale)
            finished.rename(result)
            _fsync_folder(self._results)

    def copy_result(self, source_id: str, job_id: str, attempt: int) -> None:
        """Publish the result of another job as this job's, too: links to the same bytes, which either may lose.

        Raises:
            ArtifactNotFound: the other job has no result any more.
        """
        source = self.result_dir(source_id)
        if not source.is_dir():
            raise ArtifactNotFound("The result to be reused is no longer stored.")
        result = self.begin_result(job_id, attempt)
        with _translated_errors():
            shutil.copytree(source, result, copy_function=_link_or_copy, dirs_exist_ok=True)
        self.publish_result(job_id, attempt)

    def discard_attempt(self, job_id: str, attempt: int) -> None:
        """Remove everything one attempt wrote and did not publish."""
        remove(self._attempt(job_id, attempt))
        with suppress(OSError):  # already gone, or another attempt is at work
            (self._scratch / checked_job_id(job_id)).rmdir()

    # Results

    def result_dir(self, job_id: str) -> Path:
        """Folder of the job's artifacts; it exists once a result was published."""
        return self._results / checked_job_id(job_id)

    def artifact_path(self, job_id: str, name: str) -> Path:
        """Path of a published artifact such as `masks/liver.nii.gz`.

        Raises:
            ArtifactNotFound: there is no such file in the job's result, or the name tries to leave it.
        """
        parts = name.split("/")
        safe = all(_SAFE_NAME.fullmatch(part) for part in parts)
        path = self.result_dir(job_id).joinpath(*PurePosixPath(name).parts) if safe else None
        if path is None or not path.is_file():
            raise ArtifactNotFound(f"This job has no artifact {name[:80]!r}.")
        return path

    @contextmanager
    def result_files(self, job_id: str) -> Iterator[Path]:
        """A folder of this machine with the job's artifacts, for reading while the block lasts.

        Raises:
            ArtifactNotFound: the job has no stored result.
        """
        folder = self.result_dir(job_id)
        if not folder.is_dir():
            raise ArtifactNotFound("This job has no stored result.")
        yield folder

    def artifact(self, job_id: str, name: str) -> StoredFile:
        """A published artifact such as `masks/liver.nii.gz`.

        Raises:
            ArtifactNotFound: there is no such file in the job's result, or the name tries to leave it.
        """
        path = self.artifact_path(job_id, name)
        with _translated_errors():
            return StoredFile(path.stat().st_size, path)

    def delete_result(self, job_id: str) -> None:
        """Remove the job's artifacts; nothing happens where there are none."""
        remove(self.result_dir(job_id))

    def delete_job(self, job_id: str) -> None:
        """Remove every file of the job."""
        self.delete_upload(job_id)
        self.delete_result(job_id)
        remove(self._scratch / checked_job_id(job_id))

    # Sweeping

    def scratch_ids(self) -> set[str]:
        """Ids of the jobs that have scratch files on this machine."""
        return {path.name for path in self._scratch.iterdir() if is_job_id(path.name)}

    def sweep_scratch(self, files_needed: Callable[[Collection[str]], Mapping[str, FilesNeeded]]) -> None:
        """Remove the scratch files of jobs that have ended or are unknown; `files_needed` asks the job table.

        What other workers begin meanwhile stays: only jobs whose files were here before the question are removed.
        """
        present = self.scratch_ids()
        needed = files_needed(present)
        for job_id in present:
            if needed.get(job_id) is not FilesNeeded.ALL:
                remove(self._scratch / job_id)

    def job_ids(self) -> set[str]:
        """Ids of the jobs that have any file here."""
        folders = (self._uploads, self._results, self._scratch)
        return {path.name for folder in folders for path in folder.iterdir() if is_job_id(path.name)}

    def sweep_orphans(self, needed: Mapping[str, FilesNeeded], *, min_age_seconds: float = 3600.0) -> int:
        """Remove what no job needs: files of unknown jobs, and all but the result of a job that has ended.

        Args:
            needed: for each job of `job_ids()` that the table knows, read after `job_ids()`.
            min_age_seconds: leave fresh files of unknown jobs alone: an upload arrives before its job is in the table.

        Returns:
            How many folders were removed.
        """
        return sum(
            remove(path)
            for folder in (self._uploads, self._scratch, self._results)
            for path in folder.iterdir()
            if self._is_orphan(path, needed.get(path.name), min_age_seconds)
        )

    def _is_orphan(self, path: Path, needed: FilesNeeded | None, min_age_seconds: float) -> bool:
        if needed is None:
            return age_seconds(path) >= min_age_seconds
        return needed is FilesNeeded.NONE or (needed is FilesNeeded.RESULT and path.parent != self._results)

    def _attempt(self, job_id: str, attempt: int) -> Path:
        return self._scratch / checked_job_id(job_id) / str(attempt)


def checked_job_id(job_id: str) -> str:
    """The id itself, when it is one: nothing else may become a part of a path."""
    if not is_job_id(job_id):
        raise ValueError(f"Not a job id: {job_id[:80]!r}")
    return job_id


def open_storage(data_dir: Path, url: str) -> LocalStorage:
    """The storage of a URL: `file://` is the data folder, `s3://bucket/prefix` a bucket beside it.

    Raises:
        StorageUnavailable: it cannot be used.
    """
    if url.startswith("file:"):
        return LocalStorage(data_dir)
    from service.object_storage import ObjectStorage  # needs the extra `s3`

    return ObjectStorage(data_dir, url)


def checked_upload_name(filename: str) -> str:
    """The name itself, when it is a plain and safe one."""
    if not _SAFE_NAME.fullmatch(filename) or filename.endswith(PART_SUFFIX):
        raise ValueError(f"Not a safe name for an uploaded file: {filename!r}")
    return filename


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Turn an operating system's refusal into a typed error that names no path."""
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error


def is_disk_full(error: OSError) -> bool:
    """True when the operation failed for want of space."""
    return error.errno in _DISK_FULL


def storage_error(error: OSError) -> StorageUnavailable:
    """The typed form of a failed file operation."""
    if is_disk_full(error):
        return StorageUnavailable("The disk of the server is full; free some space and submit the study again.")
    reason = os.strerror(error.errno) if error.errno else "unknown reason"
    return StorageUnavailable(f"The storage of the server cannot be used ({reason}); tell its operator.")


def remove(path: Path) -> bool:
    """Remove a file or a folder; True when there was one."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error) from error
    return True


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def age_seconds(path: Path) -> float:
    """Since the file or folder was last written."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            with (Path(folder) / name).open("rb") as file:
                os.fsync(file.fileno())
        _fsync_folder(Path(folder))


def _fsync_folder(folder: Path) -> None:
    """Make renames in a folder durable; only POSIX can open one."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
