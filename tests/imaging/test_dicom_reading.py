"""DICOM: files of any name, order and packing become one volume; what is no CT series says so."""

import random
import shutil
import zipfile

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from service.errors import (
    DecodeFailed,
    EmptyUpload,
    InvalidGeometry,
    JobCanceled,
    MultiplePatients,
    NotHounsfield,
    TooFewSlices,
    UnreadableUpload,
    UnsafeArchive,
    UnsupportedModality,
    UnsupportedVolume,
    UploadTooLarge,
)
from service.imaging.limits import ReadLimits
from service.imaging.study import read_study, read_volume, select_ct_series
from service.imaging.volume import SourceFormat
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.nifti_files import write_nifti
from tests.support.reading import notice_codes, read_upload

HU = body_hu((20, 18, 12))


def test_files_of_any_name_and_order_make_the_volume(tmp_path):
    paths = write_ct_series(tmp_path / "written", HU)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    upload = tmp_path / "upload"
    random.Random(3).shuffle(paths)
    for number, path in enumerate(paths):
        target = upload / f"folder{number % 3}" / ("x" * (number + 1))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    volume = read_upload(upload, tmp_path / "scratch")
    np.testing.assert_array_equal(volume.hu, HU)
    np.testing.assert_allclose(volume.geometry.affine, axial_affine(), atol=1e-6)
    assert volume.sop_instance_uids == tuple(uids)
    assert volume.source_format is SourceFormat.DICOM
    assert volume.notices == ()


def test_a_zip_of_the_series_is_the_same_input(tmp_path):
    folder = tmp_path / "series"
    write_ct_series(folder, HU)
    shutil.make_archive(str(tmp_path / "upload"), "zip", folder)
    from_zip = read_upload(tmp_path / "upload.zip", tmp_path / "scratch")
    assert from_zip.input_sha256 == read_upload(folder, tmp_path / "unused").input_sha256
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name
)
def test_lossless_syntaxes_give_the_same_pixels(tmp_path, syntax):
    hu = body_hu((64, 64, 10))
    write_ct_series(tmp_path / "a", hu, transfer_syntax=syntax)
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, hu)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name)
def test_other_encodings(tmp_path, syntax):
    for path in write_ct_series(tmp_path / "a", HU):
        dataset = pydicom.dcmread(path)
        if syntax is ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


def test_files_without_preamble_and_meta_information(tmp_path):
    for path in write_ct_series(tmp_path / "a", HU):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta, dataset.preamble
        pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


def test_a_deflated_series(tmp_path):
    for path in write_ct_series(tmp_path / "a", HU):
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path)
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


def test_a_deflated_bomb_is_refused_within_its_bound(tmp_path):
    (path, *_) = write_ct_series(tmp_path / "a", HU)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(80 * 1024**2)
    dataset.save_as(path)
    assert path.stat().st_size < 200_000
    with pytest.raises(UnsafeArchive, match="deflated DICOM file expands out of proportion"):
        read_upload(tmp_path / "a", tmp_path)


def test_unsigned_12_bit_with_overlay_in_the_unused_bits(tmp_path):
    def unsigned(dataset, k):
        stored = (HU[:, :, k].T.astype(np.int32) + 1024).astype("<u2")
        stored[0, 0] |= 0x8000
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 0, 12, 11
        dataset.PixelData = stored.tobytes()

    write_ct_series(tmp_path / "a", HU, change=unsigned)
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


def test_rescale_is_taken_from_each_image(tmp_path):
    def by_slice(dataset, k):
        slope = 0.25 * (k % 3 + 1)
        stored = np.rint((HU[:, :, k].T + 1024.0) / slope)
        dataset.RescaleSlope, dataset.PixelRepresentation, dataset.PixelData = slope, 0, stored.astype("<u2").tobytes()

    write_ct_series(tmp_path / "a", HU, change=by_slice)
    assert np.abs(read_upload(tmp_path / "a", tmp_path).hu.astype(int) - HU).max() <= 1


def test_absent_rescale_is_noticed_or_refused(tmp_path):
    def already_hu(dataset, k):
        dataset.PixelData = np.ascontiguousarray(HU[:, :, k].T).astype("<i2").tobytes()

    write_ct_series(tmp_path / "hu", HU, change=already_hu, RescaleSlope=None, RescaleIntercept=None)
    volume = read_upload(tmp_path / "hu", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == ["rescale-absent"]
    write_ct_series(tmp_path / "stored", HU, RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(NotHounsfield, match="offset by 1024"):
        read_upload(tmp_path / "stored", tmp_path)


@pytest.mark.parametrize("overrides", [{"RescaleType": "MGML"}, {"RescaleSlope": 0}])
def test_other_quantities_are_refused(tmp_path, overrides):
    write_ct_series(tmp_path / "a", HU, **overrides)
    with pytest.raises(NotHounsfield, match="Rescale"):
        read_upload(tmp_path / "a", tmp_path)


def test_padding_around_the_circle_becomes_air_but_not_in_the_patient(tmp_path):
    """Padding value 1024 is 0 HU here: the border is padding, an equal voxel in the middle is water."""
    hu = HU.copy()
    hu[HU == 0] = 1
    hu[:3] = 0
    hu[10, 9, 6] = 0
    write_ct_series(tmp_path / "a", hu, PixelPaddingValue=1024)
    volume = read_upload(tmp_path / "a", tmp_path)
    assert (volume.hu[:3] == -1024).all()
    assert volume.hu[10, 9, 6] == 0


def test_padding_below_the_scale_is_clamped(tmp_path):
    hu = HU.copy()
    hu[:2] = -3024
    write_ct_series(tmp_path / "a", hu, PixelPaddingValue=-2000)
    volume = read_upload(tmp_path / "a", tmp_path)
    assert (volume.hu[:2] == -1024).all()
    assert notice_codes(volume) == ["padding-clamped"]


def test_litter_other_objects_and_copies_are_skipped_with_a_notice(tmp_path):
    folder = tmp_path / "a"
    paths = write_ct_series(folder, HU)
    shutil.copy(paths[4], folder / "copy")
    (folder / "README.txt").write_text("about")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "empty").touch()
    write_ct_series(folder, HU[:, :, :1], name="scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_ct_series(folder, HU[:, :, :2], name="seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    volume = read_upload(folder, tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == [
        "files-skipped", "files-skipped", "other-skipped", "localizer-skipped", "duplicates-dropped",
    ]  # fmt: skip
    assert [notice.message for notice in volume.notices[:3]] == [
        "1 file neither DICOM nor NIfTI skipped.",
        "1 file of 0 bytes skipped.",
        "2 DICOM objects that are no CT images (SEG) skipped.",
    ]


def test_empty_uids_are_read_with_a_notice(tmp_path):
    empty = dict.fromkeys(["SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientID", "StudyInstanceUID"], "")
    paths = write_ct_series(tmp_path / "a", HU, **empty)
    shutil.copy(paths[4], tmp_path / "a" / "copy")
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert volume.sop_instance_uids is None
    assert notice_codes(volume) == ["duplicates-dropped", "series-uid-missing", "sop-uids-missing"]


def test_one_uid_for_every_image_drops_none(tmp_path):
    write_ct_series(tmp_path / "a", HU, SOPInstanceUID="1.2.3")
    volume = read_upload(tmp_path / "a", tmp_path)
    assert volume.hu.shape == HU.shape
    assert volume.sop_instance_uids is None


def test_text_in_a_uid_reaches_no_result_and_no_log(tmp_path, caplog):
    for path in write_ct_series(tmp_path / "a", HU):
        for uid in (pydicom.dcmread(path).SOPInstanceUID, pydicom.dcmread(path).SeriesInstanceUID):
            path.write_bytes(path.read_bytes().replace(uid[:8].encode(), b"Doe^John"))
    volume = read_upload(tmp_path / "a", tmp_path)
    assert volume.sop_instance_uids is None
    assert "Doe" not in repr(volume.notices)
    assert caplog.text == ""


def test_the_choice_among_series_follows_the_rule_and_is_told(tmp_path):
    folder = tmp_path / "a"
    thick = axial_affine((1.5, 2.0, 5.0))
    write_ct_series(folder, body_hu((20, 18, 11)), thick, name="thick", SeriesInstanceUID="1.2.1", SeriesNumber=1)
    write_ct_series(folder, body_hu((20, 18, 14), 1), name="thin", SeriesInstanceUID="1.2.2", SeriesNumber=2)
    write_ct_series(
        folder, body_hu((20, 18, 30)), name="mpr", SeriesInstanceUID="1.2.3", ImageType=["DERIVED", "SECONDARY", "MPR"]
    )
    write_ct_series(folder, body_hu((20, 18, 3)), name="short", SeriesInstanceUID="1.2.4")
    study = read_study(folder, tmp_path)
    assert (len(study.series), len(study.refused)) == (3, 1)
    volume = read_volume(select_ct_series(study))
    np.testing.assert_array_equal(volume.hu, body_hu((20, 18, 14), 1))
    selected, refused = volume.notices
    assert selected.code == "series-selected"
    assert selected.message == (
        "3 CT series are usable; series 1.2.2 was taken (axial, original, 14 slices)."
        " Taken by rule: its slices are thin enough, unlike the next one."
    )
    assert refused.message == (
        "3 CT images of series 1.2.4 were left out: The series has 3 slices; at least 10 are needed."
        " Send the whole series."
    )


def test_axial_goes_before_longer_coronal(tmp_path):
    coronal = np.array([[-1.5, 0, 0, 0], [0, 0, 2.0, 0], [0, -1.5, 0, 0], [0, 0, 0, 1.0]])
    write_ct_series(tmp_path / "a", body_hu((20, 18, 30)), coronal, name="cor", SeriesInstanceUID="1.2.1")
    write_ct_series(tmp_path / "a", HU, name="ax", SeriesInstanceUID="1.2.2")
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_too_few_slices(tmp_path, count):
    write_ct_series(tmp_path / "a", HU[:, :, :count])
    with pytest.raises(TooFewSlices, match=f"The series has {count} slices?; at least 10 are needed"):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "PatientName"])
def test_two_patients_or_studies_are_refused_without_naming_them(tmp_path, keyword):
    extra = {"PatientID": ""} if keyword == "PatientName" else {}
    write_ct_series(tmp_path / "a", HU, **extra)
    write_ct_series(tmp_path / "a", HU, name="b", SeriesInstanceUID="1.2.9", **{**extra, keyword: "1.2.8.777"})
    with pytest.raises(MultiplePatients, match="2 different") as refusal:
        read_upload(tmp_path / "a", tmp_path)
    assert "777" not in refusal.value.detail
    assert "PHANTOM" not in refusal.value.detail


@pytest.mark.parametrize("modality", ["MR", "PT", "US"])
def test_other_modalities_are_named(tmp_path, modality):
    write_ct_series(tmp_path / "a", HU, Modality=modality, SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    with pytest.raises(
        UnsupportedModality, match=f"None of the 12 DICOM objects is a CT image; the modality is {modality}"
    ):
        read_upload(tmp_path / "a", tmp_path)


def test_only_localizers(tmp_path):
    write_ct_series(tmp_path / "a", HU, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with pytest.raises(UnsupportedModality, match="scout"):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("overrides", [{"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, {"NumberOfFrames": 12}])
def test_multi_frame_ct_is_refused_clearly(tmp_path, overrides):
    write_ct_series(tmp_path / "a", HU[:, :, :1], **overrides)
    with pytest.raises(UnsupportedVolume, match="multi-frame"):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "palette"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"Rows": 0}, "matrix"),
        ({"BitsAllocated": 64}, "bit depth"),
    ],
)
def test_unusable_pixel_formats(tmp_path, overrides, sentence):
    write_ct_series(tmp_path / "a", HU, **overrides)
    with pytest.raises(UnsupportedVolume, match=sentence):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("value", [None, "", ["1"], ["nan"] * 6])
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, while the bad value is written
def test_missing_geometry_is_refused(tmp_path, keyword, value):
    write_ct_series(tmp_path / "a", HU, **{keyword: value})
    with pytest.raises(InvalidGeometry, match=f"12 of 12 images have no usable {keyword}"):
        read_upload(tmp_path / "a", tmp_path)


def test_truncated_pixel_data(tmp_path):
    paths = write_ct_series(tmp_path / "a", HU)
    paths[5].write_bytes(paths[5].read_bytes()[:-100])
    with pytest.raises(DecodeFailed, match=r"\(Explicit VR Little Endian\) are damaged or cut short"):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_damaged_compressed_pixel_data(tmp_path, syntax):
    paths = write_ct_series(tmp_path / "a", body_hu((64, 64, 10)), transfer_syntax=syntax)
    dataset = pydicom.dcmread(paths[3])
    dataset.PixelData = dataset.PixelData[:40]
    dataset.save_as(paths[3])
    with pytest.raises(DecodeFailed, match="damaged or cut short"):
        read_upload(tmp_path / "a", tmp_path)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_codestream_larger_than_its_header_is_refused_undecoded(tmp_path, syntax):
    hu = body_hu((64, 64, 10))
    paths = write_ct_series(tmp_path / "a", hu, transfer_syntax=syntax)
    big = write_ct_series(tmp_path / "big", body_hu((96, 80, 10)), transfer_syntax=syntax)[0]
    dataset = pydicom.dcmread(paths[3])
    dataset.PixelData = pydicom.dcmread(big).PixelData
    dataset.save_as(paths[3])
    with pytest.raises(DecodeFailed, match="holds 80 x 96 pixels of 1 samples, but its header states 64 x 64 of 1"):
        read_upload(tmp_path / "a", tmp_path)


def test_a_declared_matrix_beyond_the_limits_takes_no_memory(tmp_path):
    write_ct_series(tmp_path / "a", HU, Rows=65535, Columns=65535)
    with pytest.raises(UploadTooLarge, match="65535 x 65535 x 12"):
        read_upload(tmp_path / "a", tmp_path)


def test_an_unknown_transfer_syntax(tmp_path):
    def private(dataset, k):
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.103"  # MPEG-4

    write_ct_series(tmp_path / "a", HU)
    for path in (tmp_path / "a").iterdir():
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0"))
    with pytest.raises(DecodeFailed, match="transfer syntax that is not read"):
        read_upload(tmp_path / "a", tmp_path)


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(EmptyUpload, match="holds no files"):
        read_upload(tmp_path / "a", tmp_path)
    (tmp_path / "a" / "x").touch()
    with pytest.raises(EmptyUpload, match="0 bytes"):
        read_upload(tmp_path / "a", tmp_path)
    (tmp_path / "a" / "y").write_text("text")
    with pytest.raises(UnreadableUpload, match=r"None of the uploaded files \(1\)"):
        read_upload(tmp_path / "a", tmp_path)
    with pytest.raises(EmptyUpload, match="no such file"):
        read_upload(tmp_path / "absent", tmp_path)


def test_an_empty_zip(tmp_path):
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    with pytest.raises(EmptyUpload, match="archive holds no files"):
        read_upload(tmp_path / "a.zip", tmp_path / "scratch")


def test_nifti_beside_dicom_is_not_chosen_from(tmp_path):
    write_ct_series(tmp_path / "a", HU)
    write_nifti(tmp_path / "a" / "mask.nii.gz")
    with pytest.raises(UnsupportedVolume, match=r"NIfTI files \(1\) and DICOM files \(12\)"):
        read_upload(tmp_path / "a", tmp_path)


def test_too_many_files(tmp_path):
    write_ct_series(tmp_path / "a", HU)
    with pytest.raises(UploadTooLarge, match="more than 11 files"):
        read_upload(tmp_path / "a", tmp_path, ReadLimits(max_files=11))


def test_progress_is_reported_and_may_stop_the_reading(tmp_path):
    write_ct_series(tmp_path / "a", HU)
    series = select_ct_series(read_study(tmp_path / "a", tmp_path))
    fractions: list[float] = []
    read_volume(series, fractions.append)
    assert fractions == pytest.approx(np.arange(1, 13) / 12)

    def stop(fraction: float) -> None:
        raise JobCanceled("stopped")

    with pytest.raises(JobCanceled):
        read_volume(series, stop)
