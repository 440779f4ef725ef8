"""Real CT in ../shared/data, read in place; each test is skipped with a reason where a scan is absent."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from service.errors import (
    DecodeFailed,
    MissingSlices,
    TooFewSlices,
    UnreadableUpload,
    UnsupportedModality,
    UnsupportedVolume,
)
from service.imaging.dicom import DicomImage, is_dicom, read_dicom_images
from service.imaging.dicom_files import quiet_pydicom
from service.imaging.dicom_groups import sort_along_normal
from service.imaging.dicom_pixels import PixelSource
from service.imaging.dicom_stack import stack_geometry
from service.imaging.isolation import IsolatedDecoder
from tests.support.reading import notice_codes, read_upload, real_scan


def header_of(path: Path) -> DicomImage:
    (image,) = read_dicom_images(path)
    return image


def dicom_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path.read_bytes()[:132]))


@pytest.mark.parametrize(
    ("name", "shape", "spacing_mm", "hu_range"),
    [
        ("cort_liver_matrad", (217, 217, 168), (3, 3, 2.5), (-1024, 1886)),
        ("cptac_pda_C3L-00189", (512, 512, 35), (0.859375, 0.859375, 5), (-1024, 3071)),
        ("lungfcp_LungFCP-01-0001_ct", (512, 512, 98), (0.759765625, 0.759765625, 1), (-1024, 3071)),
        ("kits_KiTS-00072_partial", (512, 512, 18), (0.6640625, 0.6640625, 2.5), (-1024, 1334)),
        ("totalsegmentator_example/example_ct_dicom", (512, 512, 20), (0.9765625, 0.9765625, 2), (-1024, 1839)),
    ],
)
def test_real_series(tmp_path, name, shape, spacing_mm, hu_range):
    folder = real_scan(name)
    volume = read_upload(folder, tmp_path / "scratch")
    assert volume.geometry.shape == volume.hu.shape == shape
    assert volume.geometry.spacing_mm == pytest.approx(spacing_mm)
    assert (volume.hu.min(), volume.hu.max()) == hu_range
    middle = dicom_files(folder)[shape[2] // 3]
    dataset = pydicom.dcmread(middle)
    place = np.array(dataset.ImagePositionPatient, dtype=float) * [-1, -1, 1]
    (k,) = np.flatnonzero(
        np.isclose(volume.geometry.to_ras_mm(np.eye(3)[2] * np.arange(shape[2])[:, None])[:, 2], place[2])
    )
    np.testing.assert_allclose(volume.geometry.to_ras_mm([0, 0, k]), place, atol=1e-3)
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert np.abs(volume.hu[:, :, k].T - np.maximum(hu, -1024)).max() <= 0.5


def test_empty_uids_of_a_real_series(tmp_path):
    volume = read_upload(real_scan("totalsegmentator_example/example_ct_dicom"), tmp_path)
    assert volume.sop_instance_uids is None
    assert notice_codes(volume) == ["series-uid-missing", "sop-uids-missing"]


def test_source_files_beside_a_series_are_litter(tmp_path):
    volume = read_upload(real_scan("cptac_pda_C3L-00189"), tmp_path)
    assert notice_codes(volume) == ["files-skipped", "padding-clamped"]
    assert volume.sop_instance_uids is not None


@pytest.mark.parametrize("name", ["example_ct.nii.gz", "example_ct_sm.nii.gz"])
def test_real_nifti_against_nibabel(tmp_path, name):
    path = real_scan(f"totalsegmentator_example/{name}")
    volume = read_upload(path, tmp_path)
    image = nib.load(path)
    np.testing.assert_array_equal(volume.geometry.affine, image.affine)
    np.testing.assert_array_equal(volume.hu, np.maximum(np.asanyarray(image.dataobj), -1024))


def test_lossless_syntaxes_decode_to_the_same_pixels():
    folder = real_scan("nema_wg04_CT2")
    with IsolatedDecoder() as gdcm:
        pixels = {
            syntax: PixelSource(gdcm).read(header_of(folder / syntax / f"CT2_{syntax}"))
            for syntax in ("RLE", "J2KR", "JLSL", "JPLL", "JLSN", "J2KI")
        }
    reference = pixels["RLE"]
    assert (reference.shape, reference.min(), reference.max()) == ((512, 512), -2048, 1433)
    for syntax in ("J2KR", "JLSL", "JPLL"):
        np.testing.assert_array_equal(pixels[syntax], reference)
    near = pixels["JLSN"].astype(int) - reference
    assert 0 < np.abs(near).max() <= 10
    lossy = pixels["J2KI"].astype(int) - reference
    assert 0 < np.abs(lossy).mean() < 40


def test_the_death_of_the_jpeg_decoder_is_one_decoding_error(tmp_path):
    """GDCM aborts on some damaged files; then the next image gets a new child."""
    path = real_scan("nema_wg04_CT2") / "JPLL" / "CT2_JPLL"
    image = header_of(path)
    with IsolatedDecoder() as gdcm:
        source = PixelSource(gdcm)
        expected = source.read(image)
        (child,) = gdcm._children
        assert child.process is not None
        child.process.kill()
        with pytest.raises(DecodeFailed, match="JPEG Lossless"):
            source.read(image)
        np.testing.assert_array_equal(source.read(image), expected)
        process = child.process
    assert process is not None
    assert process.returncode is not None


def test_damaged_lossless_jpeg(tmp_path):
    raw = (real_scan("nema_wg04_CT2") / "JPLL" / "CT2_JPLL").read_bytes()
    frame_at = raw.index(b"\xff\xd8\xff")
    (tmp_path / "damaged").write_bytes(raw[: frame_at + 2] + bytes(200) + raw[frame_at + 202 :])
    (tmp_path / "short").write_bytes(raw[: frame_at + 5000])
    with quiet_pydicom(), IsolatedDecoder() as gdcm:
        for name in ("damaged", "short"):
            with pytest.raises(DecodeFailed, match="JPEG Lossless"):
                PixelSource(gdcm).read(header_of(tmp_path / name))


@pytest.mark.parametrize("trap", ["gantrytilting/001", "sliceincrement/002"])
def test_real_gantry_tilts(trap):
    images = sort_along_normal([header_of(path) for path in dicom_files(real_scan("dicom2nifti_failing_A") / trap)])
    if trap.startswith("slice"):
        with pytest.raises(MissingSlices, match=r"\(about 1\): neighbours are 0\.7497 mm apart, but up to 1\.499 mm"):
            stack_geometry(images)
    else:
        geometry, spacing = stack_geometry(images)
        assert (spacing.places, round(spacing.tilt_degrees, 1)) == ((0, 1, 2, 3), 14.0)
        assert geometry.tilt_degrees == pytest.approx(spacing.tilt_degrees)


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        ("gantrytilting", "The slices are tilted by 14.0 degrees."),
        ("sliceincrement", "Slices are missing (about 1): neighbours are 0.7497 mm apart"),
    ],
)
def test_a_short_series_is_told_all_that_is_wrong_with_it(tmp_path, trap, said):
    with pytest.raises(TooFewSlices) as refusal:
        read_upload(real_scan(f"dicom2nifti_failing_A/{trap}"), tmp_path)
    assert refusal.value.detail.startswith("The series has 4 slices; at least 10 are needed. ")
    assert said in refusal.value.detail


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("nema_wg04_CT2", TooFewSlices, "The series has 5 slices; at least 10 are needed"),
        ("dcmqi_ct3slice/liver.dcm", UnsupportedModality, "the modality is SEG"),
    ],
)
def test_what_holds_no_scan(tmp_path, name, error, sentence):
    with pytest.raises(error, match=sentence):
        read_upload(real_scan(name), tmp_path)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("dcmqi_ct3slice", TooFewSlices),
        ("dicom2nifti_failing_A/gantrytilting", TooFewSlices),
        ("dicom2nifti_failing_A", TooFewSlices),
        ("totalsegmentator_example", UnsupportedVolume),
        ("clip_text_embeddings", UnreadableUpload),
    ],
)
def test_real_folders_that_are_no_ct_series(tmp_path, name, error):
    folder = real_scan(name)
    with pytest.raises(error):
        read_upload(folder, tmp_path / "scratch")
