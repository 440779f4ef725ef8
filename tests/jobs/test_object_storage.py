"""Files of jobs in a bucket: whole or absent, like those on a disk; API and worker share nothing else."""

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path

import pytest

from service.errors import ArtifactNotFound, StorageUnavailable, UploadGone
from service.jobs.job import FilesNeeded, JobStatus, new_job_id
from service.jobs.store import JobStore
from service.object_storage import ObjectStorage
from service.settings import Settings
from service.tasks import WorkContext, run_job
from tests.support.api import running_api
from tests.support.bucket import keys, new_bucket, s3_server, use_server
from tests.support.chaos_segmenter import MASK, ChaosSegmenter, mask_of, upload_of


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def storage(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectStorage:
    use_server(monkeypatch, server)
    return new_bucket(tmp_path / "disk")


def upload(storage: ObjectStorage, job_id: str, *names: str) -> None:
    for name in names:
        with storage.open_upload(job_id, name) as file:
            file.write(b"voxels")


def publish(storage: ObjectStorage, job_id: str, attempt: int = 1, text: bytes = b"0123456789") -> None:
    out_dir = storage.begin_result(job_id, attempt)
    (out_dir / "masks").mkdir()
    (out_dir / "masks" / "liver.nii.gz").write_bytes(text)
    entry = {"name": "masks/liver.nii.gz", "media_type": "application/gzip", "bytes": len(text)}
    (out_dir / "artifacts.json").write_text(json.dumps([entry | {"sha256": sha256(text).hexdigest()}]))
    storage.publish_result(job_id, attempt)


def local_files(storage: ObjectStorage) -> list[Path]:
    return [path for path in storage.root.rglob("*") if path.is_file()]


def test_upload_is_in_the_bucket_only_when_it_is_whole(storage: ObjectStorage) -> None:
    job_id = new_job_id()
    with storage.open_upload(job_id, "00001.nii.gz") as file:
        file.write(b"voxels")
        assert keys(storage) == []
    assert keys(storage) == [f"uploads/{job_id}/00001.nii.gz"]
    assert local_files(storage) == []
    with suppress(KeyboardInterrupt), storage.open_upload(job_id, "00002.nii.gz"):
        raise KeyboardInterrupt
    assert keys(storage) == [f"uploads/{job_id}/00001.nii.gz"]


def test_worker_elsewhere_fetches_the_upload_for_its_attempt(storage: ObjectStorage, tmp_path: Path) -> None:
    one, many = new_job_id(), new_job_id()
    upload(storage, one, "00001.nii.gz")
    upload(storage, many, "00001.dcm", "00002.dcm")
    elsewhere = ObjectStorage(tmp_path / "another disk", f"s3://{storage._prefix}")
    assert elsewhere.fetch_upload(one, 1).read_bytes() == b"voxels"
    assert sorted(path.name for path in elsewhere.fetch_upload(many, 1).iterdir()) == ["00001.dcm", "00002.dcm"]
    elsewhere.discard_attempt(one, 1)
    elsewhere.discard_attempt(many, 1)
    assert local_files(elsewhere) == []
    with pytest.raises(UploadGone):
        elsewhere.fetch_upload(new_job_id(), 1)


def test_result_appears_all_at_once(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = new_job_id()
    seen = []

    def put_file(local: str, key: str) -> None:
        original(local, key)
        with pytest.raises(ArtifactNotFound):
            storage.artifact(job_id, "masks/liver.nii.gz")
        seen.append(key)

    original = storage._fs.put_file
    monkeypatch.setattr(storage._fs, "put_file", put_file)
    publish(storage, job_id)
    assert len(seen) == 2
    assert storage.artifact(job_id, "masks/liver.nii.gz").read() == b"0123456789"
    for name in ("masks", "../published.json", "published.json", "nope"):
        with pytest.raises(ArtifactNotFound):
            storage.artifact(job_id, name)


def test_next_attempt_replaces_what_a_dead_one_published(storage: ObjectStorage) -> None:
    job_id = new_job_id()
    publish(storage, job_id, attempt=1, text=b"published, then killed")
    publish(storage, job_id, attempt=2, text=b"done")
    assert storage.artifact(job_id, "masks/liver.nii.gz").read() == b"done"
    assert keys(storage) == [
        f"results/{job_id}/2/artifacts.json",
        f"results/{job_id}/2/masks/liver.nii.gz",
        f"results/{job_id}/published.json",
    ]


def test_reused_result_outlives_the_first(storage: ObjectStorage) -> None:
    first, second = new_job_id(), new_job_id()
    publish(storage, first)
    storage.copy_result(first, second, 3)
    storage.delete_job(first)
    assert storage.artifact(second, "masks/liver.nii.gz").read() == b"0123456789"
    with pytest.raises(ArtifactNotFound):
        storage.copy_result(first, second, 4)
    storage.delete_job(second)
    assert keys(storage) == []


@pytest.mark.parametrize(
    ("needed", "kept"),
    [(FilesNeeded.ALL, {"uploads", "results"}), (FilesNeeded.RESULT, {"results"}), (FilesNeeded.NONE, set())],
)
def test_sweep_keeps_what_the_job_needs(storage: ObjectStorage, needed: FilesNeeded, kept: set[str]) -> None:
    job_id, unknown = new_job_id(), new_job_id()
    upload(storage, job_id, "00001.zip")
    publish(storage, job_id)
    assert storage.job_ids() == {job_id}
    storage.sweep_orphans({job_id: needed})
    assert {key.partition("/")[0] for key in keys(storage)} == kept
    upload(storage, unknown, "00001.zip")
    assert storage.sweep_orphans({job_id: needed}) == 0
    assert storage.sweep_orphans({job_id: needed}, min_age_seconds=0.0) == 1


def test_bucket_that_is_away_is_a_typed_error(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ObjectStorage(storage.root, "s3://no-such-bucket/data")
    with pytest.raises(StorageUnavailable):
        upload(absent, new_job_id(), "00001.zip")
    use_server(monkeypatch, "http://127.0.0.1:1")
    away = ObjectStorage(storage.root, "s3://bucket/data")
    for ask in (away.job_ids, lambda: upload(away, new_job_id(), "00001.zip")):
        with pytest.raises(StorageUnavailable):
            ask()
    assert local_files(storage) == []


def test_job_runs_over_the_bucket_and_its_result_is_served_in_parts(storage: ObjectStorage, tmp_path: Path) -> None:
    content = upload_of(1, 0.0)
    with running_api(tmp_path, storage=storage) as api:
        job_id = api.submit(content)["id"]
        with closing(JobStore(api.settings.database_url)) as store:
            run_job(_worker(api.settings, store, ObjectStorage(tmp_path / "worker", f"s3://{storage._prefix}")), job_id)
        assert api.store.get(job_id).status is JobStatus.SUCCEEDED

        mask, address = mask_of(content), f"/v1/jobs/{job_id}/artifacts/{MASK}"
        whole = api.client.get(address)
        assert (whole.status_code, whole.content) == (200, mask)
        etag = whole.headers["ETag"]
        assert whole.headers["Accept-Ranges"] == "bytes"
        for wanted, part in {"bytes=0-9": mask[:10], "bytes=10-": mask[10:], "bytes=-5": mask[-5:]}.items():
            answer = api.client.get(address, headers={"Range": wanted})
            assert (answer.status_code, answer.content) == (206, part)
            assert answer.headers["Content-Range"].endswith(f"/{len(mask)}")
        assert api.client.get(address, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).status_code == 200
        assert api.client.get(address, headers={"Range": "bytes=0-9", "If-Range": etag}).status_code == 206
        assert api.client.get(address, headers={"Range": f"bytes={len(mask)}-"}).status_code == 416
        assert api.client.get(address, headers={"Range": "bytes=0-1,4-5"}).status_code == 200
        assert api.client.get(address, headers={"If-None-Match": etag}).status_code == 304

        assert api.client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert keys(storage) == []


def _worker(settings: Settings, store: JobStore, storage: ObjectStorage) -> WorkContext:
    return WorkContext(
        store=store,
        storage=storage,
        segmenter=ChaosSegmenter(),
        owner="ann",
        lease_seconds=30.0,
        time_limit_seconds=3600.0,
        keep_results_for=None,
        storage_pauses=(),
        settings=settings,
        kill_process=lambda: pytest.fail("the work did not hear that it was to stop"),
    )
