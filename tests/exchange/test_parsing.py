"""Parts of multipart/related and heads of DICOM files, cut and altered at every place."""

import contextlib
import warnings
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.exchange.head import identify
from service.exchange.instance import Instance, NotAnInstance
from service.exchange.multipart import MultipartError, RelatedParts
from tests.support.dicom_series import write_ct_series

TYPE = 'multipart/related; type="application/dicom"; boundary="a b\'c"'
BODY = (
    b"--a b'c\r\nContent-Type: application/dicom; transfer-syntax=*\r\nContent-Location: http://x\r\n\r\n"
    b"one\r\n--a b'\r\n-\r\n--a b'c\r\n\r\n\r\n--a b'c\r\nContent-Type: application/dicom\r\n\r\ntwo\r\n--a b'c--\r\n"
)
PARTS = [b"one\r\n--a b'\r\n-", b"", b"two"]


class Parts:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.whole: list[bytes] = []
        self._part = b""

    def begin(self) -> None:
        self._part = b""

    def data(self, piece: bytes) -> None:
        self._part += piece

    def end(self) -> None:
        self.whole.append(self._part)


def parse(*chunks: bytes) -> list[bytes]:
    sink = Parts()
    parts = RelatedParts(TYPE, sink)
    for chunk in chunks:
        parts.feed(chunk)
    parts.finish()
    return sink.whole


def test_parts_are_the_same_however_the_body_is_cut():
    assert parse(BODY) == PARTS
    assert parse(*(bytes([byte]) for byte in BODY)) == PARTS
    for place in range(len(BODY)):
        assert parse(BODY[:place], BODY[place:]) == PARTS


def test_a_body_that_ends_early_is_never_whole():
    for place in range(BODY.rindex(b"--")):
        with pytest.raises(MultipartError):
            parse(BODY[:place])


@given(place=st.integers(0, len(BODY) - 1), byte=st.integers(0, 255))
def test_an_altered_body_is_parsed_or_refused(place: int, byte: int):
    with contextlib.suppress(MultipartError):
        parse(BODY[:place] + bytes([byte]) + BODY[place + 1 :])


@pytest.fixture(scope="module", params=["explicit", "implicit", "deflated"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Instance]:
    folder = tmp_path_factory.mktemp(request.param)
    [path, *_] = write_ct_series(folder / "ct")
    dataset = pydicom.dcmread(path)
    implicit = request.param == "implicit"
    if implicit:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif request.param == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    written: Path = folder / "written"
    dataset.save_as(written, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    instance = Instance(dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.StudyInstanceUID)
    return written.read_bytes(), instance


def test_a_head_is_known_from_some_length_on_and_never_wrong(file: tuple[bytes, Instance]):
    content, instance = file
    answers = [identify(content[:length], False) for length in range(0, len(content), 7)]
    assert set(answers) == {None, instance}
    first = answers.index(instance)
    assert answers[first:] == [instance] * (len(answers) - first)
    assert identify(content, True) == instance


def test_a_file_that_is_cut_before_its_study_is_no_instance(file: tuple[bytes, Instance]):
    content, _ = file
    for length in (0, 1, 131, 132, 144, 300):
        with pytest.raises(NotAnInstance):
            identify(content[:length], True)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(128, 900), st.integers(0, 255)), min_size=1, max_size=6))
def test_an_altered_head_is_an_instance_or_none(file: tuple[bytes, Instance], changes: list[tuple[int, int]]):
    head = bytearray(file[0][:4096])
    for place, byte in changes:
        head[place] = byte
    with warnings.catch_warnings(), contextlib.suppress(NotAnInstance):
        warnings.simplefilter("ignore")
        for complete in (False, True):
            found = identify(bytes(head), complete)
            assert found is None or all(vars(found).values())
