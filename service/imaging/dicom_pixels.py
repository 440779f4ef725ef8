"""The pixels of a DICOM series as a volume in HU."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from scipy import ndimage

from service.errors import DecodeFailed, UploadTooLarge, VisceraError
from service.imaging.codestream import declared_size
from service.imaging.dicom import DicomImage
from service.imaging.dicom_files import open_dicom, quiet_pydicom
from service.imaging.dicom_stack import DicomSeries
from service.imaging.hounsfield import AIR_HU, ValueRange, accept_hounsfield, input_sha256, to_int16
from service.imaging.isolation import IsolatedDecoder
from service.imaging.volume import Acquisition, SourceFormat, Volume

# One decoder per compressed syntax, so that a file gives the same pixels on every machine: one that fails cleanly on
# damaged data, then the quicker one. RLE: pylibjpeg is four times as quick, but damaged data make it panic past `except
# Exception`.
_PLUGINS = {
    pydicom.uid.RLELossless: "pydicom",
    pydicom.uid.JPEGLSLossless: "pyjpegls",
    pydicom.uid.JPEGLSNearLossless: "pyjpegls",
    pydicom.uid.JPEG2000Lossless: "pylibjpeg",
    pydicom.uid.JPEG2000: "pylibjpeg",
    pydicom.uid.HTJ2KLossless: "pylibjpeg",
    pydicom.uid.HTJ2KLosslessRPCL: "pylibjpeg",
    pydicom.uid.HTJ2K: "pylibjpeg",
}

# Classic JPEG, lossless and lossy, is GDCM's alone, and GDCM is kept out of this process: see `isolation`.
_ISOLATED = (
    pydicom.uid.JPEGBaseline8Bit,
    pydicom.uid.JPEGExtended12Bit,
    pydicom.uid.JPEGLossless,
    pydicom.uid.JPEGLosslessSV1,
)

# A slice that leans by less is straight above its neighbour.
_STRAIGHT_PIXELS = 0.01

# The codecs let other threads run; more than this only multiplies memory.
_MAX_THREADS = 4


def read_dicom(series: DicomSeries, progress: Callable[[float], None]) -> Volume:
    """The volume of a DICOM series: i along the rows' direction (columns), j down the columns (rows), k by slice.

    `hu` is int16 with air at -1024 and above; slices that are missing are interpolated from their neighbours.

    Raises:
        DecodeFailed: pixel data missing, cut short, damaged, or in a syntax without decoder.
        NotHounsfield: the values are not HU.
        UploadTooLarge: the volume does not fit in memory.
    """
    columns, rows, slices = series.geometry.shape
    try:
        planes: NDArray[np.int16] = np.empty((slices, rows, columns), dtype=np.int16)
        found = _read_planes(series, planes, progress)
        fill_gaps(planes, series)
    except MemoryError as error:
        raise UploadTooLarge("The series does not fit in this machine's memory. Send fewer slices.") from error
    notices = accept_hounsfield(planes, found)
    first = series.images[0]
    return Volume(
        hu=planes.T,
        geometry=series.geometry,
        source_format=SourceFormat.DICOM,
        input_sha256=input_sha256(planes.T, series.geometry.affine),
        sop_instance_uids=series.sop_instance_uids,
        notices=series.notices + notices,
        frame_numbers=series.frame_numbers,
        candidates=series.candidates,
        acquisition=Acquisition(
            modality=first.modality,
            slice_thickness_mm=first.slice_thickness_mm,
            largest_deviation_mm=series.spacing.largest_deviation_mm,
            interpolated_slices=series.spacing.missing,
            has_contrast_agent=first.has_contrast_agent,
        ),
    )


def fill_gaps(planes: NDArray[np.int16], series: DicomSeries) -> None:
    """Interpolate the missing slices of `planes` (k, j, i) between their neighbours, straight along the normal."""
    affine, places = series.geometry.affine, series.spacing.places
    # How far, in pixels down and along the rows, a slice lies from straight above the one before it.
    lean = [float(affine[:3, 2] @ affine[:3, axis]) / float(affine[:3, axis] @ affine[:3, axis]) for axis in (1, 0)]
    for below, above in pairwise(places):
        for k in range(below + 1, above):
            share = (k - below) / (above - below)
            lower = _moved(planes[below], [(k - below) * pixels for pixels in lean])
            upper = _moved(planes[above], [(k - above) * pixels for pixels in lean])
            planes[k] = np.rint((1.0 - share) * lower + share * upper)


def _moved(plane: NDArray[np.int16], pixels: list[float]) -> NDArray[np.float32]:
    """What lies in `plane` at the pixels of a slice that is moved by so many pixels (rows, columns)."""
    values = plane.astype(np.float32)
    if max(map(abs, pixels)) < _STRAIGHT_PIXELS:
        return values
    moved: NDArray[np.float32] = ndimage.shift(values, [-shift for shift in pixels], order=1, mode="nearest")
    return moved


def _read_planes(series: DicomSeries, planes: NDArray[np.int16], progress: Callable[[float], None]) -> ValueRange:
    """Fill `planes` (k, j, i) from a few threads; the range of the values before rounding."""

    def read_plane(place: int, image: DicomImage) -> ValueRange:
        found = ValueRange()
        planes[place] = _plane_hu(image, source, found)
        return found

    found = ValueRange()
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    executor = ThreadPoolExecutor(max_workers=threads)
    with quiet_pydicom(), IsolatedDecoder(threads) as gdcm:
        source = PixelSource(gdcm)
        try:
            futures = [
                executor.submit(read_plane, place, image)
                for place, image in zip(series.spacing.places, series.images, strict=True)
            ]
            for done, future in enumerate(as_completed(futures), start=1):
                found.merge(future.result())
                progress(done / len(futures))
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
    return found


def _plane_hu(image: DicomImage, source: "PixelSource", found: ValueRange) -> NDArray[np.int16]:
    """One image in HU (rows, columns), padding as air; widens `found` by the exact values.

    Raises:
        DecodeFailed: see `read_dicom`.
    """
    stored = source.read(image)
    padding = _padding_mask(image, stored)
    values = _rescaled(image, stored)
    found.include(values if padding is None else values[~padding])
    hu = to_int16(values)
    if padding is not None:
        hu[padding] = AIR_HU
    return hu


def _rescaled(image: DicomImage, stored: NDArray[Any]) -> NDArray[Any]:
    slope = 1.0 if image.rescale_slope is None else image.rescale_slope
    intercept = image.rescale_intercept or 0.0
    if slope == 1.0 and intercept.is_integer() and abs(intercept) < 1e6:
        return stored.astype(np.int64 if stored.itemsize > 2 else np.int32) + int(intercept)
    with np.errstate(over="ignore", invalid="ignore"):  # a mad slope gives infinities, which are refused
        return stored.astype(np.float64) * slope + intercept


def _padding_mask(image: DicomImage, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Pixels of the declared padding value that are connected to the image's border; None if it is air anyway.

    Padding lies around the reconstruction circle. A value inside the tissue range (0 is declared at times) also occurs
    in the patient, where it must stay.
    """
    if image.padding is None:
        return None
    lowest, highest = image.padding
    if _rescaled(image, np.array(highest, dtype=np.int64)) <= AIR_HU:
        return None  # below the scale: clamped with everything else there
    candidates = (stored >= lowest) & (stored <= highest)
    components, _ = ndimage.label(candidates)
    border = np.concatenate([components[0], components[-1], components[:, 0], components[:, -1]])
    mask: NDArray[np.bool_] = np.isin(components, np.setdiff1d(border, [0]))
    return mask if mask.any() else None


class PixelSource:
    """Pixels of images as they are stored, from any thread; a multi-frame object is read from disk once."""

    def __init__(self, gdcm: IsolatedDecoder) -> None:
        self._gdcm = gdcm
        self._lock = Lock()
        self._latest: tuple[Path, Dataset] | None = None

    def read(self, image: DicomImage) -> NDArray[Any]:
        """The pixels (rows, columns), signed or unsigned.

        Raises:
            DecodeFailed: see `read_dicom`.
        """
        syntax = pydicom.uid.UID(image.transfer_syntax)
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError as error:
            raise DecodeFailed(
                "The images are in a transfer syntax that is not read (video or private). Export them uncompressed."
            ) from error
        try:
            dataset = self._dataset(image)
            _check_declared_size(image, dataset, syntax)
            frame = image.frame or 0
            if syntax in _ISOLATED:
                stored = self._gdcm.decode(image.path, syntax, frame)
            else:
                stored, _ = decoder.as_array(dataset, index=frame, decoding_plugin=_PLUGINS.get(syntax, ""))
        except VisceraError:
            raise
        except Exception as error:  # damaged pixel data surface as almost any exception of five decoders
            raise DecodeFailed(
                f"The pixel data of an image ({syntax.name}) are damaged or cut short. Export the series again."
            ) from error
        if stored.shape != (image.rows, image.columns):
            raise DecodeFailed("The pixel data of an image do not fit its stated matrix. Export the series again.")
        return stored

    def _dataset(self, image: DicomImage) -> Dataset:
        if image.frame is None:
            return open_dicom(image.path)
        with self._lock:
            if self._latest is None or self._latest[0] != image.path:
                self._latest = None  # two of them need not fit in memory
                self._latest = (image.path, open_dicom(image.path))
            return self._latest[1]


def _check_declared_size(image: DicomImage, dataset: Dataset, syntax: pydicom.uid.UID) -> None:
    """Refuse a codestream that would decode to another size than the header's: it may be a bomb.

    Raises:
        DecodeFailed: the sizes differ.
        ValueError: the codestream breaks off.
    """
    if not syntax.is_encapsulated:
        return
    size = declared_size(get_frame(dataset.PixelData, image.frame or 0, number_of_frames=image.frames))
    if size is not None and size != (image.rows, image.columns, 1):
        rows, columns, samples = size
        raise DecodeFailed(
            f"A compressed image holds {rows} x {columns} pixels of {samples} samples, but its header states"
            f" {image.rows} x {image.columns} of 1. Export the series again."
        )
