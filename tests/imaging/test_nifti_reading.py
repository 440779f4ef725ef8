"""NIfTI: what is read keeps every voxel and the affine; what cannot be read says why."""

import gzip
import shutil
import struct

import nibabel as nib
import numpy as np
import pytest

from service.errors import (
    DecodeFailed,
    EmptyUpload,
    InvalidGeometry,
    NotHounsfield,
    TooFewSlices,
    UnreadableUpload,
    UnsupportedVolume,
    UploadTooLarge,
)
from service.imaging.limits import ReadLimits
from service.imaging.volume import SourceFormat
from tests.support.dicom_series import body_hu
from tests.support.nifti_files import RAS_2MM, patch_header, write_nifti
from tests.support.reading import notice_codes, read_upload

HU = body_hu((14, 12, 11))
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, UNITS = 40, 70, 72, 76, 108, 112, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, SROW, MAGIC = 252, 254, 256, 280, 344


def rotation(degrees: float) -> np.ndarray:
    """A rotation about the oblique axis (1, 2, 3)."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.dcm"])
def test_voxels_and_affine_are_kept(tmp_path, name):
    write_nifti(tmp_path / "whole.nii.gz" if name.endswith("gz") else tmp_path / "whole.nii", HU).rename(
        tmp_path / name
    )
    volume = read_upload(tmp_path / name, tmp_path / "scratch")
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.hu.dtype == np.int16
    np.testing.assert_array_equal(volume.geometry.affine, RAS_2MM)
    assert volume.source_format is SourceFormat.NIFTI
    assert volume.sop_instance_uids is None
    assert volume.notices == ()


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_any_of_the_48_orientations(tmp_path, flips, order):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3)[:, list(order)] * flips) * [1.0, 2.0, 3.0]
    affine[:3, 3] = [10, -20, 30]
    volume = read_upload(write_nifti(tmp_path / "a.nii", HU, affine), tmp_path)
    np.testing.assert_array_equal(volume.geometry.affine, affine)
    np.testing.assert_array_equal(volume.hu, HU)


def test_an_oblique_scan_by_sform_and_by_qform(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = rotation(25) * [1.0, 1.5, 2.5]
    affine[:3, 3] = [1, 2, 3]

    def only_qform(image):
        image.set_qform(affine, code=1)
        image.set_sform(None, code=0)

    by_sform = read_upload(write_nifti(tmp_path / "s.nii", HU, affine), tmp_path)
    by_qform = read_upload(write_nifti(tmp_path / "q.nii", HU, affine, only_qform), tmp_path)
    np.testing.assert_allclose(by_sform.geometry.affine, affine, atol=1e-5)
    np.testing.assert_allclose(by_qform.geometry.affine, affine, atol=1e-5)
    np.testing.assert_allclose(by_qform.geometry.spacing_mm, [1.0, 1.5, 2.5], atol=1e-5)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", ">f4", "<f8", "<i8", ">u2"])
def test_types_and_byte_orders_give_the_same_volume(tmp_path, dtype):
    stored = HU.astype(np.int32) + (1024 if "u" in dtype else 0)
    header = nib.Nifti1Header(endianness="<" if dtype[0] == "<" else ">")
    header.set_data_dtype(np.dtype(dtype))
    image = nib.Nifti1Image(stored.astype(dtype), RAS_2MM, header)
    if "u" in dtype:
        image.header.set_slope_inter(1, -1024)
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb") as file:
        file.write(header_of(image) + stored.astype(dtype).tobytes(order="F"))
    expected = read_upload(write_nifti(tmp_path / "b.nii", HU), tmp_path)
    volume = read_upload(path, tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.input_sha256 == expected.input_sha256


def header_of(image) -> bytes:
    image.header["vox_offset"] = 352
    return image.header.binaryblock + bytes(4)


def test_slope_and_intercept_are_applied_and_rounded(tmp_path):
    stored = (HU.astype(np.int32) + 1024) * 10
    path = write_nifti(tmp_path / "a.nii", stored.astype(np.int32))
    patch_header(path, SLOPE, struct.pack("<ff", 0.1, -1024))
    np.testing.assert_array_equal(read_upload(path, tmp_path).hu, HU)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_means_no_scaling(tmp_path, slope):
    path = patch_header(write_nifti(tmp_path / "a.nii", HU), SLOPE, struct.pack("<ff", slope, 55))
    np.testing.assert_array_equal(read_upload(path, tmp_path).hu, HU)


def test_nifti_2_and_a_trailing_axis_of_one(tmp_path):
    nib.save(nib.Nifti2Image(HU[..., None], RAS_2MM), tmp_path / "a.nii.gz")
    volume = read_upload(tmp_path / "a.nii.gz", tmp_path)
    assert volume.geometry.shape == HU.shape
    np.testing.assert_array_equal(volume.hu, HU)


def test_sform_wins_over_another_qform_and_says_so(tmp_path):
    def differ(image):
        image.set_qform(np.diag([-2.0, -2.0, 2.0, 1.0]), code=1)

    volume = read_upload(write_nifti(tmp_path / "a.nii", HU, None, differ), tmp_path)
    np.testing.assert_array_equal(volume.geometry.affine, RAS_2MM)
    assert notice_codes(volume) == ["sform-qform-differ"]


def spoilt(tmp_path, *patches: tuple[int, bytes], values=HU):
    path = write_nifti(tmp_path / "a.nii.gz", values)
    for offset, data in patches:
        patch_header(path, offset, data)
    return path


@pytest.mark.parametrize(
    ("patches", "error", "sentence"),
    [
        ([(SROW, struct.pack("<f", np.nan))], InvalidGeometry, "NaN or infinite"),
        ([(SROW, bytes(48))], InvalidGeometry, "singular"),
        ([(SROW, struct.pack("<4f", 0, 2, 0, 0)), (SROW + 32, bytes(16))], InvalidGeometry, "singular"),
        ([(SROW + 4, struct.pack("<f", 3.0))], InvalidGeometry, "tilted by 56.31 degrees|tilted by 56.3 degrees"),
        ([(SROW + 4, struct.pack("<2f", 0.5, 0.5)), (SROW + 24, struct.pack("<f", 0.5))], InvalidGeometry, "All three"),
        ([(SROW, struct.pack("<12f", *(np.eye(3, 4) * 0.002).ravel()))], InvalidGeometry, "millimetres"),
        ([(SROW, struct.pack("<12f", *(np.eye(3, 4) * 1e30).ravel()))], InvalidGeometry, "spacing is 1e"),
        ([(SFORM_CODE, bytes(2)), (QFORM_CODE, bytes(2))], InvalidGeometry, "both 0, so left, right"),
        ([(QFORM_CODE, b"\1\0\0\0"), (QUATERN_B, struct.pack("<3f", 5, 5, 5))], InvalidGeometry, "quaternion|NaN"),
        ([(QFORM_CODE, b"\1\0\0\0"), (QUATERN_B, struct.pack("<f", np.nan))], InvalidGeometry, "quaternion|NaN"),
        ([(UNITS, b"\x01")], InvalidGeometry, "in metres"),
        ([(UNITS, b"\x03")], InvalidGeometry, "in microns"),
        ([(DIM, struct.pack("<5h", 4, 14, 12, 1, 11))], UnsupportedVolume, "14 x 12 x 1 x 11"),
        ([(DIM, struct.pack("<5h", 2, 14, 132, 0, 0))], UnsupportedVolume, "14 x 132"),
        ([(DIM, struct.pack("<4h", 3, 14, -12, 11))], UnsupportedVolume, "14 x -12 x 11"),
        ([(DIM, struct.pack("<4h", 3, 14, 44, 3))], TooFewSlices, "14 x 44 x 3 voxels; at least 10"),
        ([(DIM, struct.pack("<4h", 3, 32767, 32767, 32767))], UploadTooLarge, "at most"),
        ([(DATATYPE, struct.pack("<hh", 128, 24))], UnsupportedVolume, "RGB"),
        ([(DATATYPE, struct.pack("<hh", 32, 64))], UnsupportedVolume, "complex64"),
        ([(DATATYPE, struct.pack("<hh", 1, 1))], UnsupportedVolume, "voxel type"),
        ([(DATATYPE, struct.pack("<hh", 999, 16))], UnsupportedVolume, "code 999"),
        ([(VOX_OFFSET, struct.pack("<f", 1e9))], UnreadableUpload, "byte 1e"),
        ([(VOX_OFFSET, struct.pack("<f", np.nan))], UnreadableUpload, "byte nan"),
        ([(MAGIC, b"ni1\0")], UnreadableUpload, r"\.hdr/\.img pair"),
        ([(MAGIC, b"nope")], UnreadableUpload, "no NIfTI header"),
        ([(0, b"\0\0\0\0")], UnreadableUpload, "no NIfTI header"),
    ],
)
def test_a_spoilt_header_is_refused(tmp_path, patches, error, sentence):
    with pytest.raises(error, match=sentence):
        read_upload(spoilt(tmp_path, *patches), tmp_path)


def test_a_slope_out_of_this_world_is_no_hu(tmp_path):
    with pytest.raises(NotHounsfield, match=r"beyond|infinite"):
        read_upload(spoilt(tmp_path, (SLOPE, struct.pack("<ff", 3e38, 0))), tmp_path)


def test_nan_voxels_are_counted(tmp_path):
    values = HU.astype(np.float32)
    values[2, 2, 2] = np.nan
    with pytest.raises(NotHounsfield, match="NaN or infinite values, 1 in all"):
        read_upload(write_nifti(tmp_path / "a.nii.gz", values), tmp_path)


def test_rgb_and_time_series_as_nibabel_writes_them(tmp_path):
    rgb = np.zeros((12, 12, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UnsupportedVolume, match="RGB"):
        read_upload(write_nifti(tmp_path / "rgb.nii.gz", rgb), tmp_path)
    with pytest.raises(UnsupportedVolume, match="14 x 12 x 11 x 5"):
        read_upload(write_nifti(tmp_path / "4d.nii.gz", np.repeat(HU[..., None], 5, axis=3)), tmp_path)


@pytest.mark.parametrize("values", [HU.clip(0, 1) * 1.0, HU.clip(0, 255).astype(np.uint8)])
def test_normalised_scans_are_refused(tmp_path, values):
    with pytest.raises(NotHounsfield, match="The values run from 0 to"):
        read_upload(write_nifti(tmp_path / "a.nii.gz", values), tmp_path)


def test_a_text_file_with_the_name_of_a_scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_text("this is not a scan\n" * 100)
    with pytest.raises(UnreadableUpload, match="whatever their names say"):
        read_upload(path, tmp_path / "scratch")


def test_gzip_of_something_else(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(b"text " * 1000))
    with pytest.raises(UnreadableUpload, match="no NIfTI header"):
        read_upload(path, tmp_path / "scratch")


def test_a_file_of_0_bytes(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    with pytest.raises(EmptyUpload, match="0 bytes"):
        read_upload(tmp_path / "scan.nii.gz", tmp_path / "scratch")


@pytest.mark.parametrize("keep", [5, 100, 0.5, -1])
def test_a_truncated_gzip(tmp_path, keep):
    path = write_nifti(tmp_path / "a.nii.gz", HU)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises((UnreadableUpload, DecodeFailed), match=r"cut short|ends before its last voxel"):
        read_upload(path, tmp_path)


def test_a_gzip_with_an_altered_byte(tmp_path):
    path = write_nifti(tmp_path / "a.nii", HU)
    raw = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))  # stored, so that only the checksum can tell
    raw[2000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DecodeFailed, match="damaged"):
        read_upload(path, tmp_path)


def test_a_truncated_nii(tmp_path):
    path = write_nifti(tmp_path / "a.nii", HU)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DecodeFailed, match="ends before its last voxel"):
        read_upload(path, tmp_path)


def test_a_gzip_bomb_costs_only_its_header(tmp_path):
    """64 MiB of zeros behind a header that declares a small volume, or one beyond the limits."""
    small = write_nifti(tmp_path / "a.nii", HU).read_bytes()
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(small)
        for _ in range(64):
            file.write(bytes(1024**2))
    np.testing.assert_array_equal(read_upload(path, tmp_path).hu, HU)
    patch_header(path, DIM, struct.pack("<4h", 3, 512, 512, 256))
    with pytest.raises(UploadTooLarge, match="512 x 512 x 256 = 67108864 voxels; at most 1000000"):
        read_upload(path, tmp_path, ReadLimits(max_voxels=1_000_000))


def test_several_nifti_files_are_not_chosen_from(tmp_path):
    for name in "ab":
        write_nifti(tmp_path / f"{name}.nii.gz", HU)
    with pytest.raises(UnsupportedVolume, match="2 NIfTI files"):
        read_upload(tmp_path, tmp_path / "scratch")


def test_a_nifti_inside_a_zip_among_litter(tmp_path):
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "scan.nii.gz", HU)
    (tmp_path / "in" / "readme.txt").write_text("about")
    shutil.make_archive(str(tmp_path / "upload"), "zip", tmp_path / "in")
    volume = read_upload(tmp_path / "upload.zip", tmp_path / "scratch")
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == ["files-skipped"]
