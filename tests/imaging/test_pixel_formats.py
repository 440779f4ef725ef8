"""Pixels as they are packed, coded and scaled: the HU are the same whichever way."""

import base64

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless, JPEGLossless, JPEGLosslessSV1

from service.errors import NotHounsfield
from service.imaging.dicom import read_dicom_images
from service.imaging.dicom_pixels import PixelSource
from service.imaging.isolation import IsolatedDecoder
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.enhanced_ct import write_enhanced_ct
from tests.support.jpeg_lossless import recompress
from tests.support.reading import notice_codes, read_upload

HU = body_hu((32, 28, 12))

# 16 x 16 pixels of (7 x + 13 y^2) mod 4096 as OpenJPH 0.26.3 writes them; no encoder of HTJ2K is installed.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAALoAAf+TwAAmI/wFB3QAAMAAEsAAEwD+AId0"
    "AFb5Awd0AMAAEsAAFUDeAAJ0AJ/RzWfo5gGGtADAABPAABbI7u6gp8J1AOf5fJ7neZ6B4BkInoHgGQj+AAAAx+QxuADAACrgABeg"
    "ACRJkufAp6enQngAmXNmZmZmZmZmzpmZmZmZmZk5Z2ZmZmZmZgZ4GeBlgJcBXgZ4GeBlgJcB3gBCACCEIAMf16/WX9ev1l6MajG1"
    "Af/Z"
)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=lambda uid: uid.name)
def test_lossless_jpeg(tmp_path, syntax):
    for path in write_ct_series(tmp_path / "a", HU, PixelRepresentation=0):
        recompress(path, syntax)
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, HU)


def test_lossless_jpeg_of_many_frames(tmp_path):
    path = write_enhanced_ct(tmp_path / "a", HU, axial_affine(), order=[*range(5, 12), *range(5)])
    recompress(path, JPEGLosslessSV1)
    np.testing.assert_array_equal(read_upload(path, tmp_path).hu, HU)


def test_high_throughput_jpeg_2000(tmp_path):
    def coded(dataset, k):
        dataset.PixelData = encapsulate([HTJ2K])
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless

    path = write_ct_series(tmp_path / "a", body_hu((16, 16, 12)), PixelRepresentation=0, change=coded)[0]
    y, x = np.indices((16, 16))
    with IsolatedDecoder() as gdcm:
        np.testing.assert_array_equal(PixelSource(gdcm).read(read_dicom_images(path)[0]), (7 * x + 13 * y * y) % 4096)


@pytest.mark.parametrize(("bits", "signed"), [(12, False), (12, True), (16, False), (16, True)])
def test_bits_and_signs(tmp_path, bits, signed):
    hu = HU.clip(-1000, 1000)

    def packed(dataset, k):
        intercept = 0 if signed else -1024
        stored = (hu[:, :, k].T.astype(np.int32) - intercept) & (2**bits - 1)
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = int(signed), bits, bits - 1
        dataset.RescaleIntercept, dataset.PixelData = intercept, stored.astype("<u2").tobytes()

    write_ct_series(tmp_path / "a", hu, change=packed)
    np.testing.assert_array_equal(read_upload(tmp_path / "a", tmp_path).hu, hu)


def test_monochrome1_says_how_to_show_the_values_not_what_they_are(tmp_path):
    """PS3.3 C.7.6.3.1.2: the lowest value is shown white; rescale gives HU all the same."""
    write_ct_series(tmp_path / "a", HU, PhotometricInterpretation="MONOCHROME1")
    volume = read_upload(tmp_path / "a", tmp_path)
    np.testing.assert_array_equal(volume.hu, HU)
    assert notice_codes(volume) == ["monochrome1"]


def test_values_that_were_inverted_are_refused(tmp_path):
    write_ct_series(tmp_path / "a", -HU - 10, PhotometricInterpretation="MONOCHROME1")
    with pytest.raises(NotHounsfield, match="where air should be: they are inverted"):
        read_upload(tmp_path / "a", tmp_path)
