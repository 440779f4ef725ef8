"""CT images as stacks: which belong together, in what order, and on what grid.

Positions and direction cosines decide; instance numbers, slice thickness and spacing between slices are known to lie.
A stack exists only if its slices are evenly spaced along their common normal. Everything measured here is in LPS until
the affine turns to RAS in its last line.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidGeometry, NotHounsfield, TooFewSlices, UnsupportedVolume
from service.imaging.acceptance import MAX_AXIS_COSINE, MIN_SLICES, check_size, checked_geometry
from service.imaging.dicom import DicomImage, Orientation, is_uid
from service.imaging.geometry import LPS_FROM_RAS, Geometry
from service.imaging.limits import ReadLimits
from service.imaging.volume import Notice

#: Images whose direction cosines differ by less are parallel (0.06 degrees); scanners repeat them to 6 decimals.
SAME_ORIENTATION = 1e-3

#: Cosines are accepted as unit vectors within this; files with two decimals are off by at most 0.007.
UNIT_LENGTH_TOLERANCE = 0.01

#: Slices closer than this share a position.
SAME_POSITION_MM = 0.01

#: A slice may lie this far from its even place: positions rounded to 0.1 mm, or a tenth of the spacing.
POSITION_TOLERANCE_MM = 0.1
POSITION_TOLERANCE_OF_SPACING = 0.1

#: RescaleType values that mean HU or do not say; dual-energy maps carry others (for example MGML, Z_EFF).
HOUNSFIELD_RESCALE_TYPES = frozenset({"", "HU", "HU_MOD", "US"})


@dataclass(frozen=True)
class DicomSeries:
    """CT images that form one even stack, in the order of k; their pixels are still on disk."""

    images: tuple[DicomImage, ...]
    geometry: Geometry
    notices: tuple[Notice, ...] = ()

    @property
    def uid(self) -> str:
        """The SeriesInstanceUID, empty if the files carry none."""
        return self.images[0].series_uid

    @property
    def slices(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def sop_instance_uids(self) -> tuple[str, ...] | None:
        """The SOPInstanceUID of each k, or None if the images do not each have one of their own."""
        return _own_uids(self.images)

    @property
    def is_original(self) -> bool:
        """Whether the images are reconstructions from the scanner and not derived from other images."""
        return self.images[0].image_type[:1] != ("DERIVED",)

    @property
    def is_axial(self) -> bool:
        """Whether the slice normal runs along the body more than across it."""
        return int(np.argmax(np.abs(self.geometry.affine[:3, 2]))) == 2


def group_images(images: Iterable[DicomImage]) -> list[list[DicomImage]]:
    """Images that may form a stack: one series, frame of reference, matrix, spacing and orientation.

    Without a SeriesInstanceUID the series number takes its place.
    """
    groups: defaultdict[tuple[object, ...], list[list[DicomImage]]] = defaultdict(list)
    for image in images:
        series = image.series_uid or image.series_number
        key = (series, image.frame_of_reference_uid, image.rows, image.columns)
        for group in groups[key]:
            if _parallel(group[0], image):
                group.append(image)
                break
        else:
            groups[key].append([image])
    return [group for groups_of_key in groups.values() for group in groups_of_key]


def stack_images(images: Sequence[DicomImage], limits: ReadLimits) -> DicomSeries:
    """The images as one stack.

    Raises:
        TooFewSlices, UploadTooLarge: from the number and the matrix of the images.
        UnsupportedVolume: colour, MONOCHROME1 or varying pixel formats.
        NotHounsfield: the rescale gives another quantity than HU.
        InvalidGeometry: positions, orientation or spacing missing, uneven, doubled or sheared.
    """
    unique, dropped = drop_duplicates(images)
    if len(unique) < MIN_SLICES:
        noun = "slice" if len(unique) == 1 else "slices"
        raise TooFewSlices(
            f"The series has {len(unique)} {noun}; at least {MIN_SLICES} are needed. Send the whole series."
        )
    _check_pixel_format(unique)
    _check_rescale(unique)
    check_size((unique[0].columns, unique[0].rows, len(unique)), limits)
    ordered = sort_along_normal(unique)
    return DicomSeries(tuple(ordered), stack_geometry(ordered), _notices(ordered, dropped))


def drop_duplicates(images: Sequence[DicomImage]) -> tuple[list[DicomImage], int]:
    """The images without copies of the same instance, and the number of copies.

    Copies share position and SOPInstanceUID; where the UID is empty, their files are equal byte for byte. Position is
    part of it because some anonymisers give every slice the same UID.
    """
    by_position: defaultdict[tuple[float, ...] | None, list[DicomImage]] = defaultdict(list)
    for image in images:
        by_position[image.position_mm].append(image)
    unique: list[DicomImage] = []
    for same_position in by_position.values():
        instances: dict[str, DicomImage] = {}
        for image in same_position:
            alone = len(same_position) == 1
            instances.setdefault(image.sop_instance_uid or ("" if alone else _file_digest(image)), image)
        unique.extend(instances.values())
    return unique, len(images) - len(unique)


def sort_along_normal(images: Sequence[DicomImage]) -> list[DicomImage]:
    """The images by their position projected on the slice normal (row x column), lowest first.

    Raises:
        InvalidGeometry: an image lacks position, orientation or spacing, or its cosines are none.
    """
    for keyword, values in (
        ("ImagePositionPatient", [image.position_mm for image in images]),
        ("ImageOrientationPatient", [image.orientation for image in images]),
        ("PixelSpacing", [image.pixel_spacing_mm for image in images]),
    ):
        if missing := sum(value is None for value in values):
            raise InvalidGeometry(
                f"{missing} of {len(images)} images have no usable {keyword}, so their place is unknown."
                " Export the series again from the scanner or PACS."
            )
    normal = _axes(images[0].orientation)[2]
    return sorted(images, key=lambda image: float(np.dot(normal, np.asarray(image.position_mm))))


def stack_geometry(images: Sequence[DicomImage]) -> Geometry:
    """The grid of images that are sorted along their normal: i along a row, j down a column, k along the normal.

    Raises:
        InvalidGeometry: doubled or missing positions, uneven spacing, slices shifted sideways (gantry tilt).
    """
    row, column, normal = _axes(images[0].orientation)
    row_spacing, column_spacing = images[0].pixel_spacing_mm or (0.0, 0.0)
    if min(row_spacing, column_spacing) <= 0:
        raise InvalidGeometry(
            f"PixelSpacing is {row_spacing:g} x {column_spacing:g}, not positive. Export the series again."
        )
    positions = np.array([image.position_mm for image in images], dtype=np.float64)  # (K, 3), LPS mm
    step = _even_step(positions, normal)
    lps = np.eye(4)
    lps[:3, 0] = row * column_spacing  # along a row, from column to column
    lps[:3, 1] = column * row_spacing
    lps[:3, 2] = step
    lps[:3, 3] = positions[0]
    return checked_geometry((images[0].columns, images[0].rows, len(images)), LPS_FROM_RAS @ lps)


def _even_step(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector (mm) from each slice to the next, if there is one for all.

    Raises:
        InvalidGeometry: there is none; the message holds what was measured.
    """
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    if doubled := int(np.count_nonzero(steps < SAME_POSITION_MM)):
        raise InvalidGeometry(
            f"{doubled} of {len(positions)} slices lie at the position of another one. The series holds several phases"
            " or reconstructions: send one of them."
        )
    tolerance = max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_OF_SPACING * usual)
    if steps.max() > 1.5 * usual:
        missing = int(np.rint(steps / usual - 1).sum())
        raise InvalidGeometry(
            f"Slices are missing (about {missing}): neighbours are {usual:.4g} mm apart, but up to {steps.max():.4g}"
            " mm. Send the whole series."
        )
    if np.abs(steps - usual).max() > tolerance:
        raise InvalidGeometry(
            f"The slices are unevenly spaced, {steps.min():.4g} to {steps.max():.4g} mm apart."
            " Send an evenly reconstructed series."
        )
    whole = positions[-1] - positions[0]
    step: NDArray[np.float64] = whole / (len(positions) - 1)
    sideways_mm = float(np.linalg.norm(whole - (whole @ normal) * normal))
    tilt = sideways_mm / float(whole @ normal)
    if sideways_mm <= POSITION_TOLERANCE_MM:
        step = (step @ normal) * normal  # rounded positions: over a short stack they would pass for a tilt
    elif tilt > MAX_AXIS_COSINE:
        raise InvalidGeometry(
            f"The slices are shifted sideways, {np.degrees(np.arctan(tilt)):.1f} degrees off their normal (a gantry"
            " tilt). Resample the series to a rectangular grid, for example with dcm2niix."
        )
    even = positions[0] + np.arange(len(positions))[:, None] * step
    off = float(np.linalg.norm(positions - even, axis=1).max())
    if off > tolerance:
        raise InvalidGeometry(
            f"The slices do not lie on one line: one is {off:.3g} mm from its even place. Send an evenly"
            " reconstructed series."
        )
    return step


def _axes(
    orientation: Orientation | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, down a column and along the normal (LPS)."""
    cosines = np.asarray(orientation, dtype=np.float64)
    row, column = cosines[:3], cosines[3:]
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    if np.abs(lengths - 1).max() > UNIT_LENGTH_TOLERANCE:
        raise InvalidGeometry("ImageOrientationPatient does not hold unit vectors. Export the series again.")
    row, column = row / lengths[0], column / lengths[1]
    normal = np.cross(row, column)
    if np.linalg.norm(normal) < 0.5:
        raise InvalidGeometry("The row and column directions are parallel. Export the series again.")
    return row, column, normal / np.linalg.norm(normal)


def _parallel(first: DicomImage, second: DicomImage) -> bool:
    """Whether two images have the same pixel spacing and orientation (or lack the same)."""
    for a, b in ((first.orientation, second.orientation), (first.pixel_spacing_mm, second.pixel_spacing_mm)):
        if a is None or b is None:
            if a is not b:
                return False
        elif max(abs(x - y) for x, y in zip(a, b, strict=True)) > SAME_ORIENTATION:
            return False
    return True


def _check_pixel_format(images: Sequence[DicomImage]) -> None:
    first = images[0]
    if any(image.samples_per_pixel != 1 for image in images):
        raise UnsupportedVolume("The images are in colour (several samples per pixel). Send the original CT series.")
    interpretations = {image.photometric_interpretation for image in images} - {""}
    if interpretations - {"MONOCHROME2"}:
        raise UnsupportedVolume(
            "The images are not MONOCHROME2. Inverted (MONOCHROME1) or palette images may carry altered values:"
            " send the original CT series."
        )
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


def _notices(images: Sequence[DicomImage], dropped: int) -> tuple[Notice, ...]:
    notices: list[Notice] = []
    if dropped:
        notices.append(
            Notice("duplicates-dropped", f"{dropped} copies of images that were already there were dropped.")
        )
    if not images[0].series_uid:
        notices.append(
            Notice("series-uid-missing", "The images have no SeriesInstanceUID; series number and grid were used.")
        )
    if _own_uids(images) is None:
        notices.append(
            Notice(
                "sop-uids-missing", "Not every image has a SOPInstanceUID of its own; results do not refer to images."
            )
        )
    without = sum(image.rescale_slope is None or image.rescale_intercept is None for image in images)
    if without:
        notices.append(
            Notice(
                "rescale-absent",
                f"{without} of {len(images)} images lack RescaleSlope or RescaleIntercept; 1 and 0 were assumed.",
            )
        )
    return tuple(notices)


def _own_uids(images: Sequence[DicomImage]) -> tuple[str, ...] | None:
    uids = tuple(image.sop_instance_uid for image in images)
    return uids if len(set(uids)) == len(uids) and all(is_uid(uid) for uid in uids) else None


def _file_digest(image: DicomImage) -> str:
    with image.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
