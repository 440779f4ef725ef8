"""Files of jobs: whole or absent, never outside their folder, and swept when nobody needs them."""

import errno
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import ArtifactNotFound, StorageUnavailable
from service.jobs.job import FilesNeeded, new_job_id
from service.storage import LocalStorage, storage_error


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "data")


def upload(storage: LocalStorage, job_id: str, *names: str) -> None:
    for name in names:
        with storage.open_upload(job_id, name) as file:
            file.write(b"voxels")


def publish(storage: LocalStorage, job_id: str, attempt: int = 1, text: str = "mask") -> None:
    out_dir = storage.begin_result(job_id, attempt)
    (out_dir / "masks").mkdir()
    (out_dir / "masks" / "liver.nii.gz").write_text(text)
    storage.publish_result(job_id, attempt)


def files(storage: LocalStorage) -> set[str]:
    return {str(path.relative_to(storage.root)) for path in storage.root.rglob("*") if path.is_file()}


def make_old(path: Path) -> None:
    hours_ago = time.time() - 7200
    os.utime(path, (hours_ago, hours_ago))


def test_what_a_killed_sender_left_unfinished_is_discarded(storage: LocalStorage) -> None:
    job_id = new_job_id()
    storage.discard_unfinished(job_id)
    for name in ("00001.dcm", "00002.dcm"):
        with storage.open_upload(job_id, name) as file:
            file.write(b"whole")
    (storage.upload_dir(job_id) / "00003.dcm.part").write_bytes(b"half")
    storage.discard_unfinished(job_id)
    assert files(storage) == {f"uploads/{job_id}/00001.dcm", f"uploads/{job_id}/00002.dcm"}


def test_upload_gets_its_name_only_when_it_is_whole(storage: LocalStorage) -> None:
    job_id = new_job_id()
    with storage.open_upload(job_id, "00000.nii.gz") as file:
        file.write(b"voxels")
        assert files(storage) == {f"uploads/{job_id}/00000.nii.gz.part"}
        with pytest.raises(StorageUnavailable, match="no longer stored"):
            storage.fetch_upload(job_id, 1)
    assert storage.fetch_upload(job_id, 1).read_bytes() == b"voxels"
    assert files(storage) == {f"uploads/{job_id}/00000.nii.gz"}


def test_upload_that_breaks_off_leaves_no_file(storage: LocalStorage) -> None:
    job_id = new_job_id()
    with suppress(KeyboardInterrupt), storage.open_upload(job_id, "00000.zip") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert files(storage) == set()


def test_upload_of_several_files_is_read_as_a_folder(storage: LocalStorage) -> None:
    one, many = new_job_id(), new_job_id()
    upload(storage, one, "00000.dcm")
    upload(storage, many, "00000.dcm", "00001.dcm")
    assert storage.fetch_upload(one, 1) == storage.upload_dir(one) / "00000.dcm"
    assert storage.fetch_upload(many, 1) == storage.upload_dir(many)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/passwd", "..", ".hidden", "", "x\0y", "a\nb", "x.part", "a" * 200]
)
def test_upload_name_that_is_not_a_plain_name_is_refused(storage: LocalStorage, name: str) -> None:
    with pytest.raises(ValueError, match="Not a safe name"), storage.open_upload(new_job_id(), name):
        pass
    assert files(storage) == set()


@pytest.mark.parametrize("job_id", ["", "..", "../x", "/etc", "A" * 36, "{12345678-1234-5678-1234-567812345678}"])
def test_folder_is_named_only_by_a_job_id(storage: LocalStorage, job_id: str) -> None:
    for method in (storage.upload_dir, storage.result_dir, storage.delete_job):
        with pytest.raises(ValueError, match="Not a job id"):
            method(job_id)


def test_result_appears_all_at_once(storage: LocalStorage) -> None:
    job_id = new_job_id()
    out_dir = storage.begin_result(job_id, 1)
    (out_dir / "findings.json").write_text("{}")
    assert not storage.result_dir(job_id).exists()
    storage.publish_result(job_id, 1)
    assert storage.artifact_path(job_id, "findings.json").read_text() == "{}"


def test_next_attempt_removes_and_replaces_what_a_dead_one_left(storage: LocalStorage) -> None:
    job_id = new_job_id()
    publish(storage, job_id, attempt=1, text="published, then killed")
    (storage.begin_result(job_id, 2) / "half").touch()
    publish(storage, job_id, attempt=3, text="done")
    storage.discard_attempt(job_id, 3)
    assert files(storage) == {f"results/{job_id}/masks/liver.nii.gz"}
    assert storage.artifact_path(job_id, "masks/liver.nii.gz").read_text() == "done"
    assert list((storage.root / "scratch").iterdir()) == []


def test_attempt_can_be_discarded_twice(storage: LocalStorage) -> None:
    job_id = new_job_id()
    storage.begin_result(job_id, 1)
    storage.temporary_dir(job_id, 1)
    storage.discard_attempt(job_id, 1)
    storage.discard_attempt(job_id, 1)
    assert list((storage.root / "scratch").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "masks/../../secret",
        "/etc/passwd",
        "masks",
        "masks/",
        "",
        "..",
        "masks//liver.nii.gz",
        "m\0",
        "nope.json",
    ],
)
def test_artifact_outside_the_result_or_absent_is_not_found(storage: LocalStorage, name: str) -> None:
    job_id = new_job_id()
    publish(storage, job_id)
    (storage.root / "results" / "secret").write_text("other")
    with pytest.raises(ArtifactNotFound):
        storage.artifact_path(job_id, name)
    with pytest.raises(ArtifactNotFound):
        storage.artifact_path(new_job_id(), "masks/liver.nii.gz")


def test_deleted_job_leaves_nothing(storage: LocalStorage) -> None:
    job_id = new_job_id()
    upload(storage, job_id, "00000.zip")
    publish(storage, job_id)
    storage.begin_result(job_id, 2)
    storage.delete_job(job_id)
    storage.delete_job(job_id)
    assert storage.job_ids() == set()


@pytest.mark.parametrize(
    ("needed", "kept"),
    [
        (FilesNeeded.ALL, {"uploads", "scratch", "results"}),
        (FilesNeeded.RESULT, {"results"}),
        (FilesNeeded.NONE, set()),
    ],
)
def test_sweep_keeps_what_the_job_needs(storage: LocalStorage, needed: FilesNeeded, kept: set[str]) -> None:
    job_id = new_job_id()
    upload(storage, job_id, "00000.zip")
    publish(storage, job_id)
    (storage.begin_result(job_id, 2) / "half").touch()
    assert storage.job_ids() == {job_id}
    assert storage.sweep_orphans({job_id: needed}) == 3 - len(kept)
    assert {name.partition("/")[0] for name in files(storage)} == kept


def test_sweep_leaves_an_unknown_upload_alone_until_it_is_old(storage: LocalStorage) -> None:
    job_id = new_job_id()
    upload(storage, job_id, "00000.zip")
    assert storage.sweep_orphans({}) == 0
    make_old(storage.upload_dir(job_id))
    assert storage.sweep_orphans({}) == 1
    assert storage.job_ids() == set()


def test_scratch_of_jobs_that_are_over_is_swept_by_itself(storage: LocalStorage) -> None:
    running, ended, unknown = new_job_id(), new_job_id(), new_job_id()
    for job_id in (running, ended, unknown):
        (storage.begin_result(job_id, 1) / "half").touch()
    publish(storage, ended, attempt=2)
    (storage.begin_result(ended, 3) / "half").touch()
    assert storage.scratch_ids() == {running, ended, unknown}
    begun_meanwhile = new_job_id()

    def files_needed(job_ids: Collection[str]) -> Mapping[str, FilesNeeded]:
        assert set(job_ids) == {running, ended, unknown}
        (storage.begin_result(begun_meanwhile, 1) / "half").touch()
        return {running: FilesNeeded.ALL, ended: FilesNeeded.RESULT}

    storage.sweep_scratch(files_needed)
    kept = {f"scratch/{job_id}/1/result/half" for job_id in (running, begun_meanwhile)}
    assert files(storage) == {*kept, f"results/{ended}/masks/liver.nii.gz"}


def test_full_disk_is_a_typed_error_without_a_path(storage: LocalStorage) -> None:
    with pytest.raises(StorageUnavailable, match="full") as caught, storage.open_upload(new_job_id(), "a.zip"):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/patient.zip")
    assert "/data" not in caught.value.detail
    assert "patient" not in storage_error(OSError(errno.EACCES, "denied", "/data/patient")).detail
    assert files(storage) == set()


def test_folder_that_cannot_be_made_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable):
        LocalStorage(tmp_path / "file")
