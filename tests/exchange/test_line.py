"""Whole jobs between the service and a real PACS: a reference goes in, and SEG and SR are in the PACS."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest

from service.cli.local_key import read_local_key
from service.cli.push import push as push_command
from service.errors import ResultNotReady, UnknownPeer
from service.exchange import push, wado
from service.exchange.plan import Exchange, StudyReference
from service.jobs.job import Job, JobStatus, NewJob, new_job_id
from service.jobs.store import JobStore
from service.progress import Progress
from service.request import SegmentationRequest
from service.settings import Settings
from service.storage import LocalStorage
from service.tasks import WorkContext, run_job
from tests.support import fake_segmenter
from tests.support.dicom_result import write_result
from tests.support.dicom_series import write_ct_series
from tests.support.fake_segmenter import NOTICE
from tests.support.jobs import REPOSITORY
from tests.support.orthanc import PASSWORD, Orthanc
from tests.support.service_process import running_service
from tests.support.stored import stored_files
from training.phantom.phantom import ABDOMEN, draw_phantom
from training.phantom.write import write_dicom


class Copier:
    """A segmenter that finds what was prepared, and notes what it was given."""

    def __init__(self, result: Path) -> None:
        self._result = result
        self.read: set[str] = set()

    def warm_up(self) -> None:
        """Nothing to load."""

    def segment(self, upload: Path, out_dir: Path, model: str, request: SegmentationRequest, progress: Progress):
        self.read = {str(pydicom.dcmread(path).SOPInstanceUID) for path in upload.iterdir()}
        (out_dir / "dicom").mkdir()
        for path in (self._result / "dicom").iterdir():
            (out_dir / "dicom" / path.name).write_bytes(path.read_bytes())
        return [NOTICE]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Job, Copier]]:
    """Runs a job with that exchange as a worker does."""
    monkeypatch.setattr(wado, "PAUSES_SECONDS", (0.0,))
    monkeypatch.setattr(push, "PAUSES_SECONDS", (0.0,))
    result = write_result(tmp_path / "prepared", outputs=None)

    def run(exchange: Exchange, result_key: str | None = None, **settings: object) -> tuple[Job, Copier]:
        chosen = Settings.model_validate({"data_dir": tmp_path / "data", **settings})
        store, copier = JobStore(chosen.database_url), Copier(result.folder)
        context = WorkContext(
            store=store,
            storage=LocalStorage(chosen.data_dir),
            segmenter=copier,
            owner="alice",
            lease_seconds=30.0,
            time_limit_seconds=600.0,
            keep_results_for=None,
            storage_pauses=(),
            kill_process=lambda: pytest.fail("the work did not hear that it was to stop"),
            settings=chosen,
        )
        job_id = new_job_id()
        new = NewJob(job_id, "m", SegmentationRequest(), upload_bytes=0, upload_files=0, exchange=exchange)
        store.create(replace(new, result_key=result_key))
        run_job(context, job_id)
        return store.get(job_id), copier

    return run


def test_a_referenced_study_is_segmented_and_the_result_is_in_the_pacs(
    run: Callable[..., tuple[Job, Copier]], orthanc: Orthanc, tmp_path: Path
):
    files = write_ct_series(tmp_path / "ct")
    orthanc.upload(files)
    url = f"{orthanc.dicomweb}/studies/{pydicom.dcmread(files[0]).StudyInstanceUID}"
    exchange = Exchange(source=StudyReference(url=url, credentials="pacs"), push=("pacs",))

    job, copier = run(exchange, reference_hosts=[orthanc.host], peers={"pacs": orthanc.peer})

    assert (job.status, job.notices, job.error) == (JobStatus.SUCCEEDED, (NOTICE,), None)
    assert copier.read == {str(pydicom.dcmread(path).SOPInstanceUID) for path in files}
    assert len(orthanc.instances()) == len(files) + 3
    assert {name.split("/")[0] for name in stored_files(tmp_path / "data")} == {"results"}


def test_a_study_that_is_not_there_fails_the_job(run: Callable[..., tuple[Job, Copier]], orthanc: Orthanc, tmp_path):
    exchange = Exchange(source=StudyReference(url=f"{orthanc.dicomweb}/studies/1.2.3", credentials="pacs"))

    job, _ = run(exchange, reference_hosts=[orthanc.host], peers={"pacs": orthanc.peer})

    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error.code == "reference-not-found"
    assert stored_files(tmp_path / "data") == []


def test_wrong_credentials_fail_the_job_and_are_not_repeated(run: Callable[..., tuple[Job, Copier]], orthanc: Orthanc):
    exchange = Exchange(source=StudyReference(url=f"{orthanc.dicomweb}/studies/1.2.3", credentials="pacs"))

    job, _ = run(exchange, reference_hosts=[orthanc.host], peers={"pacs": orthanc.peer | {"password": "hunter2"}})

    assert job.error is not None
    assert job.error.code == "reference-unreachable"
    assert "401" in job.error.detail
    assert "hunter2" not in str(job)


def test_a_peer_that_is_away_costs_the_job_a_remark_and_not_its_result(
    run: Callable[..., tuple[Job, Copier]], tmp_path: Path, orthanc: Orthanc
):
    files = write_ct_series(tmp_path / "ct")
    orthanc.upload(files)
    url = f"{orthanc.dicomweb}/studies/{pydicom.dcmread(files[0]).StudyInstanceUID}"
    exchange = Exchange(source=StudyReference(url=url, credentials="pacs"), push=("away",))
    peers = {"pacs": orthanc.peer, "away": {"url": "http://127.0.0.1:9"}}

    job, _ = run(exchange, reference_hosts=[orthanc.host], peers=peers)

    assert job.status is JobStatus.SUCCEEDED
    assert [notice["code"] for notice in job.notices] == [NOTICE["code"], "push-failed"]
    assert len([name for name in stored_files(tmp_path / "data") if name.startswith("results/")]) == 3


def test_a_study_that_a_pacs_stores_here_runs_by_itself_when_it_is_complete(orthanc: Orthanc, tmp_path: Path):
    """Orthanc sends in batches; the sweeper of the service finds the quiet study, and a worker (a stand-in) runs it."""
    files = write_ct_series(tmp_path / "ct")
    orthanc.upload(files)
    settings = {
        "VISCERA_SEGMENTER": fake_segmenter.SPEC,
        "VISCERA_PEERS": json.dumps({"pacs": orthanc.peer}),
        "VISCERA_RECEIVED_CHOICES": '{"targets": ["liver"]}',
        "VISCERA_RECEIVED_PUSH": '["pacs"]',
        "VISCERA_STUDY_QUIET_SECONDS": "3",
        "VISCERA_SWEEP_SECONDS": "0.2",
        "PYTHONPATH": str(REPOSITORY),
    }
    with running_service(tmp_path / "data", **settings) as (viscera, _):
        key = read_local_key(tmp_path / "data")
        assert key is not None
        orthanc.register("viscera", dicomweb=f"{viscera.url}/dicomweb", key=key)
        [study] = orthanc.http.get("/studies").json()
        sent = orthanc.http.post("/dicom-web/servers/viscera/stow", json={"Resources": [study], "Synchronous": True})
        assert sent.is_success, sent.text
        [job] = viscera.jobs()["jobs"]
        assert (job["status"], job["upload_files"], job["targets"]) == ("queued", len(files), ["liver"])
        job = viscera.wait(job["id"])
        assert job["status"] == "succeeded", job
        assert [warning["code"] for warning in job["warnings"]] == ["fake", "nothing-to-push"]


def test_a_reused_result_is_sent_where_the_new_job_says(
    run: Callable[..., tuple[Job, Copier]], orthanc: Orthanc, tmp_path: Path
):
    files = write_ct_series(tmp_path / "ct")
    orthanc.upload(files)
    url = f"{orthanc.dicomweb}/studies/{pydicom.dcmread(files[0]).StudyInstanceUID}"
    settings = {
        "reference_hosts": [orthanc.host],
        "peers": {"pacs": orthanc.peer, "away": {"url": "http://127.0.0.1:9"}},
    }
    source = StudyReference(url=url, credentials="pacs")
    first, _ = run(Exchange(source=source, push=("away",)), "key", **settings)

    second, copier = run(Exchange(push=("pacs",)), "key", **settings)

    assert [notice["code"] for notice in first.notices] == [NOTICE["code"], "push-failed"]
    assert (second.reused_from, second.notices, copier.read) == (first.id, (NOTICE,), set())
    assert len(orthanc.instances()) == len(files) + 3


def test_the_command_sends_a_result_again(orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    peers = {"pacs": orthanc.peer, "away": {"url": "http://127.0.0.1:9"}}
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("VISCERA_PEERS", json.dumps(peers))
    monkeypatch.setattr(push, "PAUSES_SECONDS", ())
    monkeypatch.setattr("service.cli.push.configure_logging", lambda **_: None)
    result = write_result(tmp_path / "prepared", outputs=None)
    settings = Settings()
    store, storage = JobStore(settings.database_url), LocalStorage(settings.data_dir)
    job_id = new_job_id()
    store.create(NewJob(job_id, "m", SegmentationRequest(), upload_bytes=0, upload_files=0))

    with pytest.raises(ResultNotReady):
        push_command(job_id, ["pacs"])
    assert store.claim(job_id, "alice", 30.0)
    shutil.copytree(result.folder / "dicom", storage.begin_result(job_id, 1) / "dicom")
    storage.publish_result(job_id, 1)
    assert store.succeed(job_id, "alice", [])

    with pytest.raises(UnknownPeer):
        push_command(job_id, ["elsewhere"])
    assert push_command(job_id, ["away"]) == 2
    assert "3 of 3" in capsys.readouterr().err
    assert push_command(job_id, ["pacs"]) == 0
    assert len(orthanc.instances()) == 3


@pytest.mark.slow
def test_the_default_model_between_a_pacs_and_itself(orthanc: Orthanc, tmp_path: Path):
    """A phantom study by reference from Orthanc; its SEG and SR by STOW-RS to Orthanc, and read back from there."""
    phantom = draw_phantom(41, spacing_mm=(2.5, 2.5, 4.0), field_of_view=ABDOMEN)
    write_dicom(phantom, tmp_path / "ct")
    files = sorted((tmp_path / "ct").rglob("*.dcm"))
    orthanc.upload(files)
    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
    settings = {
        "VISCERA_REFERENCE_HOSTS": json.dumps([orthanc.host]),
        "VISCERA_PEERS": json.dumps({"pacs": orthanc.peer, "node": orthanc.node}),
        "VISCERA_STUDY_QUIET_SECONDS": "1",
        "VISCERA_SWEEP_SECONDS": "0.5",
    }
    with running_service(tmp_path / "data", **settings) as (viscera, _):
        job = viscera.submit_reference(
            f"{orthanc.dicomweb}/studies/{study}", credentials="pacs", push=["pacs"], targets=["liver", "kidney_right"]
        )
        job = viscera.wait(job["id"])
        assert job["status"] == "succeeded", job
        assert [warning for warning in job["warnings"] if warning["code"].startswith("push")] == []

        client = orthanc.wado()
        for artifact in viscera.artifacts(job["id"]):
            if artifact["media_type"] != "application/dicom":
                continue
            written = pydicom.dcmread(viscera.download(job["id"], artifact["name"], tmp_path / "out"))
            back = client.retrieve_instance(study, written.SeriesInstanceUID, written.SOPInstanceUID)
            assert back.to_json_dict() == written.to_json_dict()
        modalities = [series["00080060"]["Value"][0] for series in client.search_for_series(study)]
        assert sorted(modalities) == ["CT", "SEG", "SR"]
    assert PASSWORD not in (tmp_path / "data" / "service.log").read_text()
    assert study not in (tmp_path / "data" / "service.log").read_text()
