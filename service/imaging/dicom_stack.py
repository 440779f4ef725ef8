"""CT images as one stack: in which order, on what grid, and what to know about them.

A stack exists only if its slices are evenly spaced along their common normal; small gaps are places to interpolate, and
a gantry tilt stays in the affine as the shear that it is. Everything is in LPS until the affine turns to RAS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.errors import InputError, InvalidGeometry, NotHounsfield, TooFewSlices, UnsupportedVolume
from service.imaging.acceptance import MIN_SLICES, check_size, checked_geometry, tilt_notices
from service.imaging.dicom import DicomImage
from service.imaging.dicom_groups import drop_duplicates, image_axes, positions_of, sort_along_normal
from service.imaging.dicom_values import is_uid
from service.imaging.geometry import LPS_FROM_RAS, MAX_AXIS_COSINE, Geometry
from service.imaging.kernels import KernelKind, kernel_kind
from service.imaging.limits import ReadLimits
from service.imaging.spacing import SliceSpacing, measure_spacing
from service.imaging.volume import Candidate, Notice, Plane

#: RescaleType values that mean HU or do not say; dual-energy maps carry others (for example MGML, Z_EFF).
HOUNSFIELD_RESCALE_TYPES = frozenset({"", "HU", "HU_MOD", "US"})

#: A tilt in the header that the positions do not show, in degrees, is pointed out.
_TILT_TOLERANCE_DEGREES = 1.0


@dataclass(frozen=True)
class DicomSeries:
    """CT images that form one even stack; their pixels are still on disk.

    `images` come in the order of k; spacing.places holds the k of each, since places may be empty. `images_given`
    counts them with copies. `candidates` are the stacks of the study, this one among them, once it was chosen.
    """

    images: tuple[DicomImage, ...]
    geometry: Geometry
    spacing: SliceSpacing
    images_given: int
    notices: tuple[Notice, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def uid(self) -> str:
        """The SeriesInstanceUID, empty if the files carry none."""
        return self.images[0].series_uid

    @property
    def slices(self) -> int:
        """Number of slices, interpolated ones included."""
        return self.geometry.shape[2]

    @property
    def sop_instance_uids(self) -> tuple[str, ...] | None:
        """The SOPInstanceUID at each k, empty where a slice is interpolated; None if images lack one of their own."""
        if not _have_own_uids(self.images):
            return None
        uids = [""] * self.slices
        for place, image in zip(self.spacing.places, self.images, strict=True):
            uids[place] = image.sop_instance_uid
        return tuple(uids)

    @property
    def frame_numbers(self) -> tuple[int, ...] | None:
        """The frame (from 1, as DICOM counts; 0 where interpolated) at each k of a multi-frame object, or None."""
        if self.images[0].frame is None:
            return None
        numbers = [0] * self.slices
        for place, image in zip(self.spacing.places, self.images, strict=True):
            numbers[place] = 1 + (image.frame or 0)
        return tuple(numbers)

    @property
    def is_original(self) -> bool:
        """Whether the images are reconstructions from the scanner and not derived from other images."""
        return self.images[0].image_type[:1] != ("DERIVED",)

    @property
    def plane(self) -> Plane:
        """The plane of the body nearest to the slices."""
        x, y, z = np.abs(np.cross(self.geometry.affine[:3, 0], self.geometry.affine[:3, 1]))
        return Plane.AXIAL if z >= max(x, y) else Plane.SAGITTAL if x >= y else Plane.CORONAL

    @property
    def is_axial(self) -> bool:
        """Whether the slices lie across the body more than along it."""
        return self.plane is Plane.AXIAL

    @property
    def kernel_kind(self) -> KernelKind:
        """Soft, sharp or unknown."""
        return kernel_kind(self.images[0].kernel)

    @property
    def coverage_mm(self) -> float:
        """Extent along the slices' normal, from the first to the last slice and one spacing more."""
        return self.slices * self.spacing.normal_spacing_mm


def stack_images(images: Sequence[DicomImage], limits: ReadLimits) -> DicomSeries:
    """The images as one stack.

    Raises:
        TooFewSlices, UploadTooLarge: from the number and the matrix of the images.
        UnsupportedVolume: colour, palette or varying pixel formats.
        NotHounsfield: the rescale gives another quantity than HU.
        InvalidGeometry: positions, orientation or spacing missing, uneven, doubled or sheared in the plane.
        MissingSlices: more slices are missing than may be interpolated.
    """
    unique = drop_duplicates(images)
    if len(unique) < MIN_SLICES:
        noun = "slice" if len(unique) == 1 else "slices"
        raise TooFewSlices(
            f"The series has {len(unique)} {noun}; at least {MIN_SLICES} are needed. Send the whole series."
            f"{_also(unique)}"
        )
    _check_pixel_format(unique)
    _check_rescale(unique)
    check_size((unique[0].columns, unique[0].rows, len(unique)), limits)
    ordered = sort_along_normal(unique)
    geometry, spacing = stack_geometry(ordered)
    check_size(geometry.shape, limits)
    notices = (*_about_images(ordered, len(images)), *_about_geometry(ordered, geometry, spacing))
    return DicomSeries(tuple(ordered), geometry, spacing, len(images), notices)


def stack_geometry(images: Sequence[DicomImage]) -> tuple[Geometry, SliceSpacing]:
    """The grid of images sorted along their normal: i along a row, j down a column, k from slice to slice.

    Raises:
        InvalidGeometry: doubled positions, uneven spacing, pixels that are not rectangular.
        MissingSlices: more slices are missing than may be interpolated.
    """
    row, column, normal = image_axes(images[0].orientation)
    if abs(float(row @ column)) > MAX_AXIS_COSINE:
        off = np.degrees(np.arcsin(abs(float(row @ column))))
        raise InvalidGeometry(
            f"Rows and columns of the images are {off:.2f} degrees off a right angle. Export the series again."
        )
    row_spacing, column_spacing = images[0].pixel_spacing_mm or (0.0, 0.0)
    if min(row_spacing, column_spacing) <= 0:
        raise InvalidGeometry(
            f"PixelSpacing is {row_spacing:g} x {column_spacing:g}, not positive. Export the series again."
        )
    positions_mm = positions_of(images)
    spacing = measure_spacing(positions_mm, normal)
    lps = np.eye(4)
    lps[:3, 0] = row * column_spacing  # along a row, from column to column
    lps[:3, 1] = column * row_spacing
    lps[:3, 2] = spacing.step_mm
    lps[:3, 3] = positions_mm[0]
    return checked_geometry((images[0].columns, images[0].rows, spacing.count), LPS_FROM_RAS @ lps), spacing


def _also(images: Sequence[DicomImage]) -> str:
    """What else is wrong with a stack that is too short: whoever sends it again would hear of it only then."""
    if len(images) < 3:
        return ""
    try:
        _, spacing = stack_geometry(sort_along_normal(images))
    except InputError as error:
        return f" Also: {error.detail}"
    return f" The slices are tilted by {spacing.tilt_degrees:.1f} degrees." if spacing.tilt_degrees else ""


def _check_pixel_format(images: Sequence[DicomImage]) -> None:
    first = images[0]
    if any(image.samples_per_pixel != 1 for image in images):
        raise UnsupportedVolume("The images are in colour (several samples per pixel). Send the original CT series.")
    interpretations = {image.photometric_interpretation for image in images} - {""}
    if interpretations - {"MONOCHROME1", "MONOCHROME2"}:
        raise UnsupportedVolume("The images hold palette colours instead of one value per pixel. Send the original CT.")
    if first.rows < 1 or first.columns < 1 or any(image.bits_allocated not in (8, 16, 32) for image in images):
        raise UnsupportedVolume("The images state no usable matrix or bit depth. Export the series again.")


def _check_rescale(images: Sequence[DicomImage]) -> None:
    if any(image.has_modality_lut for image in images):
        raise NotHounsfield("The images map their values through a lookup table, not to HU. Send the original CT.")
    if any(image.rescale_type not in HOUNSFIELD_RESCALE_TYPES for image in images):
        raise NotHounsfield(
            "RescaleType says that the values are not HU, as in the material maps of dual-energy CT."
            " Send the conventional (or a virtual monoenergetic) series."
        )
    if any(image.rescale_slope == 0 for image in images):
        raise NotHounsfield("RescaleSlope is 0, so every voxel has one value. Export the series again.")


def _about_images(images: Sequence[DicomImage], given: int) -> list[Notice]:
    """What the attributes of the images leave open."""
    notices: list[Notice] = []
    if dropped := given - len(images):
        notices.append(
            Notice("duplicates-dropped", f"{dropped} copies of images that were already there were dropped.")
        )
    if not images[0].series_uid:
        notices.append(
            Notice("series-uid-missing", "The images have no SeriesInstanceUID; series number and grid were used.")
        )
    if not _have_own_uids(images):
        notices.append(
            Notice(
                "sop-uids-missing", "Not every image has a SOPInstanceUID of its own; results do not refer to images."
            )
        )
    if not all(image.modality for image in images):
        notices.append(Notice("modality-missing", "Images do not state a modality; their SOP class says CT."))
    if any(image.photometric_interpretation == "MONOCHROME1" for image in images):
        notices.append(
            Notice("monochrome1", "The images are MONOCHROME1, to be shown inverted; their values were read as HU.")
        )
    without = sum(image.rescale_slope is None or image.rescale_intercept is None for image in images)
    if without:
        notices.append(
            Notice(
                "rescale-absent",
                f"{without} of {len(images)} images lack RescaleSlope or RescaleIntercept; 1 and 0 were assumed.",
            )
        )
    return notices


def _about_geometry(images: Sequence[DicomImage], geometry: Geometry, spacing: SliceSpacing) -> list[Notice]:
    """What was done about a tilt or a gap, and a header that contradicts the positions."""
    notices = list(tilt_notices(geometry))
    stated = abs(images[0].gantry_tilt_degrees or 0.0)
    normal = image_axes(images[0].orientation)[2]
    shown = max(spacing.tilt_degrees, float(np.degrees(np.arccos(min(1.0, np.abs(normal).max())))))
    if stated > shown + _TILT_TOLERANCE_DEGREES:
        notices.append(
            Notice(
                "tilt-not-in-geometry",
                f"The header states a gantry tilt of {stated:.1f} degrees, which orientation and positions do not"
                " show; they were believed.",
            )
        )
    if spacing.missing:
        verb = "is missing and was" if spacing.missing == 1 else "are missing and were"
        notices.append(
            Notice(
                "slices-interpolated",
                f"{spacing.missing} of {spacing.count} slices {verb} interpolated from the neighbours;"
                " small lesions may be lost there.",
            )
        )
    return notices


def _have_own_uids(images: Sequence[DicomImage]) -> bool:
    instances = {(image.sop_instance_uid, image.frame) for image in images}
    return len(instances) == len(images) and all(is_uid(image.sop_instance_uid) for image in images)
