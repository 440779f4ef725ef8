"""Files with bytes changed, cut or put in at random: a volume or a typed error, no other exception, no warning."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from service.errors import VisceraError
from service.imaging.limits import ReadLimits
from tests.support.dicom_series import body_hu, write_ct_series
from tests.support.nifti_files import write_nifti
from tests.support.reading import read_upload

LIMITS = ReadLimits(max_files=100, max_expanded_bytes=10_000_000, max_voxels=2_000_000)

#: (fraction of the file, bytes written there); the fraction is squared, because headers lie in front.
edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True).map(lambda x: x * x), st.binary(min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
)
cuts = st.one_of(st.none(), st.floats(0, 1))
few = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def spoil(path: Path, changes: list[tuple[float, bytes]], cut: float | None) -> None:
    raw = bytearray(path.read_bytes())
    for where, data in changes:
        at = int(where * len(raw))
        raw[at : at + len(data)] = data
    path.write_bytes(raw if cut is None else raw[: int(cut * len(raw))])


def read_or_typed_error(upload: Path, scratch: Path) -> None:
    with contextlib.suppress(VisceraError):
        volume = read_upload(upload, scratch / "expanded", LIMITS)
        assert volume.hu.shape == volume.geometry.shape
    shutil.rmtree(scratch / "expanded", ignore_errors=True)


@few
@given(changes=edits, cut=cuts, compressed=st.booleans())
def test_nifti(scratch, changes, cut, compressed):
    path = write_nifti(scratch / ("a.nii.gz" if compressed else "a.nii"), body_hu((12, 11, 10)))
    spoil(path, changes, cut)
    read_or_typed_error(path, scratch)


@few
@given(
    changes=edits,
    cut=cuts,
    syntax=st.sampled_from([ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]),
)
def test_dicom(scratch, changes, cut, syntax):
    written = scratch / syntax.name
    if not written.exists():
        write_ct_series(written, body_hu((64, 64, 10)), transfer_syntax=syntax)
    folder = Path(shutil.copytree(written, scratch / "series", dirs_exist_ok=True))
    spoil(folder / "image-004", changes, cut)
    read_or_typed_error(folder, scratch)


@few
@given(changes=edits, cut=cuts)
def test_zip(scratch, changes, cut):
    if not (scratch / "whole.zip").exists():
        write_ct_series(scratch / "series", body_hu((12, 12, 10)))
        shutil.make_archive(str(scratch / "whole"), "zip", scratch / "series")
    path = Path(shutil.copy(scratch / "whole.zip", scratch / "spoilt.zip"))
    spoil(path, changes, cut)
    read_or_typed_error(path, scratch)


@few
@given(
    data=st.binary(max_size=600), magic=st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b", b"\x08\x00\x05\x00", b"DICM"])
)
def test_noise_behind_a_magic(scratch, data, magic):
    path = scratch / "noise"
    path.write_bytes((bytes(128) if magic == b"DICM" else b"") + magic + data)
    read_or_typed_error(path, scratch)
