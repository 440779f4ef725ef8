"""STOW-RS into the service: from dicomweb-client, from Orthanc in its batches, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from service.jobs.job import JobStatus
from service.jobs.keys import Scope
from tests.support.api import Api, running_api
from tests.support.dicom_series import body_hu, write_ct_series
from tests.support.jobs import wait_until
from tests.support.orthanc import Orthanc

DICOM = 'multipart/related; type="application/dicom"; boundary=frontier'


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path, study_quiet_seconds=60.0, received_choices={"targets": ["liver"]}) as api:
        yield api


def body(*parts: bytes) -> bytes:
    head = b"--frontier\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + part + b"\r\n" for part in parts) + b"--frontier--\r\n"


def post(api: Api, content: bytes, content_type: str = DICOM):
    return api.client.post("/dicomweb/studies", content=content, headers={"Content-Type": content_type})


def uids_of(sequence: str, dataset: dict) -> list[str]:
    return [item["00081155"]["Value"][0] for item in dataset[sequence]["Value"]]


def stored(api: Api, job_id: str) -> set[str]:
    return {str(pydicom.dcmread(path).SOPInstanceUID) for path in api.storage.upload_dir(job_id).iterdir()}


def test_a_study_becomes_one_held_job_however_many_requests_bring_it(api: Api, tmp_path: Path):
    files = write_ct_series(tmp_path / "ct")
    client = DICOMwebClient(f"{api.client.base_url}/dicomweb", headers={"Authorization": f"Bearer {api.key}"})

    for start in range(0, len(files), 5):
        answer = client.store_instances([pydicom.dcmread(path) for path in files[start : start + 5]])
        assert len(answer.ReferencedSOPSequence) == len(files[start : start + 5])
        assert "FailedSOPSequence" not in answer

    [job] = api.store.list()
    assert (job.status, job.upload_files, job.request.targets) == (JobStatus.QUEUED, len(files), ("liver",))
    assert stored(api, job.id) == {str(pydicom.dcmread(path).SOPInstanceUID) for path in files}
    assert job.upload_bytes == sum(path.stat().st_size for path in api.storage.upload_dir(job.id).iterdir())
    assert api.store.undispatched() == {}
    assert api.dispatched == []


def test_each_study_of_a_request_gets_its_job_and_its_link(api: Api, tmp_path: Path):
    parts = [
        path.read_bytes()
        for uid in ("1.2.3", "1.2.4")
        for path in write_ct_series(
            tmp_path / uid, StudyInstanceUID=uid, SOPInstanceUID=lambda k, uid=uid: f"{uid}.{k}"
        )
    ]

    response = post(api, body(*parts))

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/dicom+json"
    assert sorted(uids_of("00081199", response.json())) == sorted(
        f"{uid}.{k}" for uid in ("1.2.3", "1.2.4") for k in range(12)
    )
    jobs = api.store.list()
    assert {link.split(">")[0].strip(" <") for link in response.headers["Link"].split(",")} == {
        f"/v1/jobs/{job.id}" for job in jobs
    }
    assert "Location" not in response.headers
    assert sorted(min(stored(api, job.id)) for job in jobs) == ["1.2.3.0", "1.2.4.0"]
    single = post(api, body(parts[0]))
    assert api.client.get(single.headers["Location"]).json()["status"] == "queued"


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
    ids=lambda uid: uid.name,
)
def test_the_study_is_found_in_every_transfer_syntax(api: Api, tmp_path: Path, syntax):
    [path, *_] = write_ct_series(tmp_path / "ct", body_hu((64, 64, 1)))
    dataset = pydicom.dcmread(path)
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    sent = tmp_path / "sent.dcm"
    dataset.save_as(
        sent, enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )

    response = post(api, body(sent.read_bytes()))

    assert response.status_code == 200, response.text
    [job] = api.store.list()
    [kept] = api.storage.upload_dir(job.id).iterdir()
    assert kept.read_bytes() == sent.read_bytes()


def test_a_long_header_before_the_study_is_read_to_its_end(api: Api, tmp_path: Path):
    def lengthen(dataset: Dataset, _: int) -> None:
        block = dataset.private_block(0x0009, "TEST", create=True)
        block.add_new(0x01, "OB", bytes(300_000))

    [path, *_] = write_ct_series(tmp_path / "ct", change=lengthen)

    assert post(api, body(path.read_bytes())).status_code == 200


def test_what_is_no_ct_fails_by_itself(api: Api, tmp_path: Path):
    ct, *_ = write_ct_series(tmp_path / "ct")
    seg, *_ = write_ct_series(tmp_path / "seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", SOPInstanceUID="1.2.9")
    no_study, *_ = write_ct_series(tmp_path / "none", StudyInstanceUID=None)
    parts = [seg.read_bytes(), b"no DICOM at all" * 20, b"", no_study.read_bytes()]

    mixed = post(api, body(ct.read_bytes(), *parts))
    nothing = post(api, body(*parts))

    assert (mixed.status_code, nothing.status_code) == (202, 409)
    failed = mixed.json()["00081198"]["Value"]
    assert [item["00081197"]["Value"] for item in failed] == [[0x0122], [0xC000], [0xC000], [0xC000]]
    assert failed[0]["00081155"]["Value"] == ["1.2.9"]
    assert "00081199" not in nothing.json()
    [job] = api.store.list()
    assert job.upload_files == 1
    assert len(list(api.storage.upload_dir(job.id).iterdir())) == 1


def test_a_study_belongs_to_the_tenant_that_sends_it(api: Api, tmp_path: Path):
    first, second, *_ = write_ct_series(tmp_path / "ct")
    headers = {"Content-Type": DICOM}
    ours = post(api, body(first.read_bytes())).headers["Location"]

    with (
        api.client_of("clinic") as clinic,
        api.client_of("reader", Scope.READ) as reader,
        api.client_with(None) as none,
    ):
        theirs = clinic.post("/dicomweb/studies", content=body(second.read_bytes()), headers=headers).headers[
            "Location"
        ]
        assert theirs != ours
        assert (clinic.get(theirs).status_code, clinic.get(ours).status_code) == (200, 404)
        assert reader.post("/dicomweb/studies", content=body(b"x"), headers=headers).status_code == 403
        assert none.post("/dicomweb/studies", content=body(b"x"), headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b"DICM", "application/dicom", "unreadable-upload"),
        (b"x", "multipart/form-data; boundary=frontier", "unreadable-upload"),
        (b"x", 'multipart/related; type="application/dicom"', "unreadable-upload"),
        (b"x", 'multipart/related; type="application/dicom+xml"; boundary=frontier', "unreadable-upload"),
        (b"no boundary", DICOM, "invalid-request"),
        (b"", DICOM, "invalid-request"),
        (b"--frontier--\r\n", DICOM, "empty-upload"),
    ],
)
def test_a_body_of_another_form_is_a_typed_problem(api: Api, content: bytes, content_type: str, code: str):
    response = post(api, content, content_type)

    assert response.json()["type"] == f"/problems/{code}"
    assert api.store.list() == []
    assert api.stored_files() == []


def test_a_request_that_ends_early_leaves_only_whole_instances(api: Api, tmp_path: Path):
    first, second, *_ = write_ct_series(tmp_path / "ct")
    content = body(first.read_bytes(), second.read_bytes())

    response = post(api, content[:-2000])

    assert response.json()["type"] == "/problems/invalid-request"
    [job] = api.store.list()
    assert job.upload_files == 1
    assert [path.read_bytes() for path in api.storage.upload_dir(job.id).iterdir()] == [first.read_bytes()]


def test_limits_hold_for_a_request_and_for_a_study_of_many_requests(tmp_path: Path):
    files = write_ct_series(tmp_path / "ct")
    size = files[0].stat().st_size
    with running_api(tmp_path, study_quiet_seconds=60.0, max_upload_bytes=2 * size + 1000, max_upload_files=20) as api:
        assert post(api, body(*(path.read_bytes() for path in files))).status_code == 413
        assert post(api, body(files[0].read_bytes())).status_code == 200
        assert post(api, body(files[1].read_bytes())).status_code == 200
        full = post(api, body(files[2].read_bytes()))
        assert full.status_code == 409
        assert full.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA700]
        [job] = api.store.list()
        assert len(list(api.storage.upload_dir(job.id).iterdir())) == 2
    with running_api(tmp_path / "few", study_quiet_seconds=60.0, max_upload_files=3) as api:
        assert post(api, body(*(path.read_bytes() for path in files))).status_code == 202
        assert api.store.list()[0].upload_files == 3


def test_a_quiet_study_is_dispatched_and_a_late_instance_begins_another(tmp_path: Path):
    first, second, *_ = write_ct_series(tmp_path / "ct")
    with running_api(tmp_path, study_quiet_seconds=0.3) as api:
        post(api, body(first.read_bytes()))
        [job] = api.store.list()
        wait_until(lambda: list(api.store.undispatched()) == [job.id], what="the quiet time")
        api.store.claim(job.id, "worker", 30.0)

        post(api, body(second.read_bytes()))

        late, early = api.store.list()
        assert early.id == job.id
        assert (early.upload_files, late.upload_files) == (1, 1)


def test_a_canceled_study_takes_nothing_more(api: Api, tmp_path: Path):
    first, second, *_ = write_ct_series(tmp_path / "ct")
    canceled = post(api, body(first.read_bytes())).headers["Location"]
    api.client.post(f"{canceled}/cancel")

    assert post(api, body(second.read_bytes())).headers["Location"] != canceled


def test_the_batches_of_a_pacs_become_one_job(orthanc: Orthanc, api: Api, tmp_path: Path):
    """Orthanc sends a study in several requests, in the chunked encoding."""
    files = write_ct_series(tmp_path / "ct")
    orthanc.upload(files)
    orthanc.register("viscera", dicomweb=f"{api.client.base_url}/dicomweb/", key=api.key)
    [study] = orthanc.http.get("/studies").json()

    answer = orthanc.http.post("/dicom-web/servers/viscera/stow", json={"Resources": [study], "Synchronous": True})

    assert answer.is_success, answer.text
    [job] = api.store.list()
    assert stored(api, job.id) == {str(pydicom.dcmread(path).SOPInstanceUID) for path in files}
    assert job.upload_files == len(files)
