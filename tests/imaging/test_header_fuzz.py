"""Thousands of mutated headers: each is a volume or a typed error, within seconds and 2 GB, and nothing is logged.

Mutations are seeded, so that a failure names the number that makes it again. `make fuzz` runs 20,000 of them.
"""

import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import VisceraError
from service.imaging.limits import ReadLimits
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.enhanced_ct import write_enhanced_ct
from tests.support.nifti_files import write_nifti
from tests.support.reading import read_upload

LIMITS = ReadLimits(max_files=200, max_expanded_bytes=10_000_000, max_voxels=2_000_000)
SHAPE = (16, 16, 10)
MOST_SECONDS = 10.0
MOST_BYTES = 2 * 1024**3

# Values that parsers trip over: lengths, counts and decimal strings at their ends.
_NASTY = (
    b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\x7f", b"\0\x80", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0", b"1e308\\",
    b"-1e99",
    b"nan", b"inf", b"\\\\\\\\", b"SQ", b"UN", b"OW", b"\0\0\xc0\x7f", b"9999999999", b"PK\x03\x04", b"DICM",
)  # fmt: skip


def mutated(raw: bytes, chance: random.Random, header_bytes: int) -> bytes:
    """A file with one to five changes in its header: bits, bytes, nasty values, cuts, repeats."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(min(header_bytes, len(data)))
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                nasty = chance.choice(_NASTY)
                data[at : at + len(nasty)] = nasty
            case 3:
                data[at:at] = chance.choice(_NASTY)
            case 4:
                del data[at : at + chance.randint(1, 40)]
            case 5:
                data[at:at] = data[at : at + chance.randint(1, 200)]
        if not data:
            break
    return bytes(data)


def dicom_slice(folder: Path) -> Path:
    """One slice of ten is mutated, so that the others hold it to their grid."""
    return write_ct_series(folder, body_hu(SHAPE))[4]


def multi_frame(folder: Path) -> Path:
    folder.mkdir()
    return write_enhanced_ct(folder / "frames", body_hu(SHAPE), axial_affine())


def nifti(folder: Path) -> Path:
    folder.mkdir()
    return write_nifti(folder / "scan.nii", body_hu(SHAPE))


def nifti_gz(folder: Path) -> Path:
    folder.mkdir()
    return write_nifti(folder / "scan.nii.gz", body_hu(SHAPE))


def run(folder: Path, write: Callable[[Path], Path], seeds: range) -> tuple[int, int]:
    """Volumes and typed errors of the mutations; asserts what must hold of each."""
    path = write(folder / "study")
    whole = path.read_bytes()
    header = whole.find(b"\xe0\x7f\x10\x00") + 12 if path.suffix not in (".nii", ".gz") else 360
    volumes = errors = 0
    for seed in seeds:
        path.write_bytes(mutated(whole, random.Random(seed), header))
        begin = time.perf_counter()
        try:
            volume = read_upload(folder / "study", folder / "expanded", LIMITS)
        except VisceraError:
            errors += 1
        except Exception as error:
            raise AssertionError(f"{write.__name__}, seed {seed}: {type(error).__name__}") from error
        else:
            volumes += 1
            assert volume.hu.shape == volume.geometry.shape, seed
            assert volume.hu.min() >= -1024, seed
        assert time.perf_counter() - begin < MOST_SECONDS, seed
        shutil.rmtree(folder / "expanded", ignore_errors=True)
    return volumes, errors


@pytest.mark.parametrize("write", [dicom_slice, multi_frame, nifti, nifti_gz])
def test_mutated_headers(tmp_path: Path, write: Callable[[Path], Path], caplog: pytest.LogCaptureFixture) -> None:
    volumes, errors = run(tmp_path, write, range(120))
    assert errors > 20
    assert volumes + errors == 120
    assert caplog.text == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("write", [dicom_slice, multi_frame, nifti, nifti_gz])
def test_five_thousand_mutated_headers_of_each_kind(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    volumes, errors = run(tmp_path, write, range(1000, 6000))
    assert min(volumes, errors) > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST_BYTES
