"""C-STORE into the service: who may send, what is taken, and how it becomes jobs."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.sop_class import CTImageStorage, SegmentationStorage, Verification

from service.catalog import Catalog
from service.exchange.intake import Intake
from service.exchange.scp import StoreProvider
from service.jobs.store import JobStore
from service.settings import Settings
from service.storage import LocalStorage
from tests.support.bucket import keys, new_bucket, s3_server, use_server
from tests.support.dicom_series import body_hu, write_ct_series
from tests.support.jobs import wait_until
from tests.support.orthanc import running_orthanc

CALLER = "CT1"


@dataclass(frozen=True)
class Receiver:
    """A listening SCP and what lies behind it."""

    port: int
    settings: Settings
    store: JobStore
    storage: LocalStorage


@contextmanager
def receiving(folder: Path, *, storage: LocalStorage | None = None, **changes: object) -> Iterator[Receiver]:
    chosen = {"scp_callers": [CALLER], "scp_port": 0, "study_quiet_seconds": 60.0, "data_dir": folder / "data"}
    settings = Settings.model_validate(chosen | changes)
    with closing(JobStore(settings.database_url)) as store:
        storage = storage or LocalStorage(settings.data_dir)
        provider = StoreProvider(settings, Intake(settings, store, storage, Catalog.from_settings(settings)))
        port = provider.start()
        try:
            yield Receiver(port, settings, store, storage)
        finally:
            provider.stop()
            _config.STORE_RECV_CHUNKED_DATASET = False
    assert not list(settings.data_dir.glob("scp-*")), "leaves nothing under way"


def send(
    port: int,
    files: list[Path],
    *,
    caller: str = CALLER,
    called: str = "VISCERA",
    sop_class: UID = CTImageStorage,
    syntax: UID | None = None,
) -> list[int]:
    """The status of each C-STORE; empty when the association is refused, -1 where it broke."""
    entity = AE(ae_title=caller)
    entity.add_requested_context(sop_class, syntax)
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return []
    assert association.send_c_echo().Status == 0x0000
    statuses = []
    for path in files:
        status = association.send_c_store(path)
        statuses.append(status.Status if status else -1)
    association.release()
    return statuses


def test_an_association_becomes_a_held_job_for_each_study(tmp_path: Path):
    one = write_ct_series(tmp_path / "one", StudyInstanceUID="1.2.3")
    two = write_ct_series(tmp_path / "two", StudyInstanceUID="1.2.4", SOPInstanceUID=lambda k: f"1.2.4.{k}")
    with receiving(tmp_path, received_choices={"mode": "fast"}) as receiver:
        assert set(send(receiver.port, one + two)) == {0x0000}

        jobs = receiver.store.list()
        assert sorted(job.upload_files for job in jobs) == [12, 12]
        assert {job.request.mode for job in jobs} == {"fast"}
        for job in jobs:
            files = [*receiver.storage.upload_dir(job.id).iterdir()]
            [study] = {pydicom.dcmread(path).StudyInstanceUID for path in files}
            sent = one if study == "1.2.3" else two
            pixels = {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path).PixelData for path in sent}
            assert {pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path).PixelData for path in files} == pixels
        assert receiver.store.undispatched() == {}


def test_a_study_in_two_associations_is_one_job_and_two_senders_are_two(tmp_path: Path):
    files = write_ct_series(tmp_path / "ct")
    with receiving(tmp_path, scp_callers=["CT1", "CT2"]) as receiver:
        send(receiver.port, files[:6])
        send(receiver.port, files[6:])
        assert [job.upload_files for job in receiver.store.list()] == [12]
        send(receiver.port, files[:1], caller="CT2")
        assert [job.upload_files for job in receiver.store.list()] == [1, 12]


@pytest.mark.parametrize("titles", [{"caller": "STRANGER"}, {"called": "OTHER"}])
def test_whoever_is_not_named_cannot_associate(tmp_path: Path, titles: dict[str, str]):
    with receiving(tmp_path) as receiver:
        assert send(receiver.port, write_ct_series(tmp_path / "ct"), **titles) == []
        assert receiver.store.list() == []


def associations_of(receiver: Receiver) -> int:
    """How many it has; pynetdicom gives each a thread."""
    threads = (thread for thread in threading.enumerate() if isinstance(thread, Association))
    return sum(thread.is_acceptor and thread.acceptor.port == receiver.port for thread in threads)


def test_the_end_hangs_up_on_whoever_was_refused_or_never_spoke(tmp_path: Path):
    # a thread that fails fails the test: warnings are errors
    entity = AE(ae_title="STRANGER")
    entity.add_requested_context(Verification)
    context = entity.requested_contexts[0]
    context.context_id = 1
    request = A_ASSOCIATE()
    request.calling_ae_title, request.called_ae_title = "STRANGER", "VISCERA"
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")
    request.presentation_context_definition_list = [context]
    longest, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID("1.2.3")
    request.user_information = [longest, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    with ExitStack() as callers:
        with receiving(tmp_path) as receiver:
            silent, refused = (
                callers.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 30)) for _ in range(2)
            )
            refused.sendall(pdu.encode())
            assert refused.recv(1) == b"\x03", "A-ASSOCIATE-RJ"
            wait_until(lambda: associations_of(receiver) == 2)
        assert len(refused.recv(100)) == 9, "the rest of the A-ASSOCIATE-RJ"
        assert [refused.recv(1), silent.recv(1)] == [b"", b""], "hung up, without being asked"


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name
)
def test_instances_are_kept_in_the_syntax_that_they_came_in(tmp_path: Path, syntax: UID):
    [path, *_] = write_ct_series(tmp_path / "ct", body_hu((64, 64, 3)))  # JPEG 2000 wants some pixels
    dataset = pydicom.dcmread(path)
    if syntax.is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "sent", enforce_file_format=True, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    with receiving(tmp_path) as receiver:
        assert send(receiver.port, [tmp_path / "sent"], syntax=syntax) == [0x0000]
        [kept] = receiver.storage.upload_dir(receiver.store.list()[0].id).iterdir()
        assert pydicom.dcmread(kept).file_meta.TransferSyntaxUID == syntax
        assert np.array_equal(pydicom.dcmread(kept).pixel_array, pydicom.dcmread(path).pixel_array)


def test_a_study_can_be_received_into_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = write_ct_series(tmp_path / "ct")
    with s3_server() as url:
        use_server(monkeypatch, url)
        bucket = new_bucket(tmp_path / "data")
        with receiving(tmp_path, storage=bucket) as receiver:
            assert set(send(receiver.port, files[:6])) == {0x0000}
            assert set(send(receiver.port, files[6:])) == {0x0000}
            [job] = receiver.store.list()
        assert len(keys(bucket)) == len(files)
        fetched = map(pydicom.dcmread, bucket.fetch_upload(job.id, 1).iterdir())
        pixels = {dataset.SOPInstanceUID: dataset.PixelData for dataset in fetched}
        assert pixels == {dataset.SOPInstanceUID: dataset.PixelData for dataset in map(pydicom.dcmread, files)}


def test_other_objects_than_ct_are_not_negotiated(tmp_path: Path):
    files = write_ct_series(tmp_path / "seg", SOPClassUID=SegmentationStorage)
    with receiving(tmp_path) as receiver, pytest.raises(ValueError, match="presentation context"):
        send(receiver.port, files, sop_class=SegmentationStorage)


def test_an_instance_without_a_study_is_not_understood(tmp_path: Path):
    files = write_ct_series(tmp_path / "ct", StudyInstanceUID=None)
    with receiving(tmp_path) as receiver:
        assert set(send(receiver.port, files)) == {0xC000}
        assert receiver.store.list() == []


def test_limits_hold(tmp_path: Path):
    files = write_ct_series(tmp_path / "ct")
    with receiving(tmp_path / "files", max_upload_files=3) as receiver:
        assert send(receiver.port, files) == [0x0000] * 3 + [0xA700] * 9
    size = files[0].stat().st_size
    with receiving(tmp_path / "bytes", max_upload_bytes=2 * size + 1000) as receiver:
        assert send(receiver.port, files[:3]) == [0x0000] * 2 + [0xA700]
        [job] = receiver.store.list()
        assert len(list(receiver.storage.upload_dir(job.id).iterdir())) == 2
    with receiving(tmp_path / "instance", max_upload_bytes=size // 2) as receiver:
        assert send(receiver.port, files[:1]) == [-1], "broken off while it came"
    assert receiver.store.list() == [], "no job begins with nothing in it"


def test_the_command_says_what_to_set_and_then_listens(tmp_path: Path):
    environment = {**os.environ, "VISCERA_DATA_DIR": str(tmp_path / "data"), "VISCERA_SCP_PORT": "0"}
    command = [sys.executable, "-m", "service.cli", "scp"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "VISCERA_SCP_CALLERS" in refused.stderr

    environment |= {"VISCERA_SCP_CALLERS": f'["{CALLER}"]', "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 60)[0]
            port = int(process.stdout.readline().split(":")[1].split(".")[0])
            assert set(send(port, write_ct_series(tmp_path / "ct"))) == {0x0000}
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_a_pacs_stores_here(tmp_path: Path):
    """Orthanc, an independent implementation (DCMTK), as the SCU."""
    files = write_ct_series(tmp_path / "ct")
    with (
        receiving(tmp_path, scp_callers=["ORTHANC"]) as receiver,
        running_orthanc(tmp_path / "orthanc", {"viscera": ["VISCERA", "127.0.0.1", receiver.port]}) as orthanc,
    ):
        orthanc.upload(files)
        assert orthanc.http.post("/modalities/viscera/echo", json={}).is_success
        [study] = orthanc.http.get("/studies").json()
        answer = orthanc.http.post("/modalities/viscera/store", json={"Resources": [study], "Synchronous": True})
        assert answer.is_success, answer.text
        assert answer.json()["FailedInstancesCount"] == 0
        [job] = receiver.store.list()
        kept = {pydicom.dcmread(path).SOPInstanceUID for path in receiver.storage.upload_dir(job.id).iterdir()}
        assert kept == {pydicom.dcmread(path).SOPInstanceUID for path in files}
