"""Which CT images belong together: one series, split by what cannot be one stack.

Two reconstructions may share a SeriesInstanceUID, and anonymisers empty it, so the grid and the kernel decide too.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidGeometry
from service.imaging.acceptance import MIN_SLICES
from service.imaging.dicom import DicomImage, Orientation
from service.imaging.spacing import SAME_POSITION_MM, measure_spacing, runs_of_even_spacing

#: Images whose direction cosines differ by less are parallel (0.06 degrees); scanners repeat them to 6 decimals.
SAME_ORIENTATION = 1e-3

#: Cosines are accepted as unit vectors within this; files with two decimals are off by at most 0.007.
UNIT_LENGTH_TOLERANCE = 0.01

# A rotating view of one scan has some hundred.
_MAX_ORIENTATIONS = 500

# What tells two sets of images at the same positions apart, the likeliest first. Not asked otherwise: some scanners
# count up the acquisition number within one reconstruction.
_PHASES: tuple[Callable[[DicomImage], Hashable], ...] = (
    lambda image: image.acquisition_number,
    lambda image: image.image_type,
    lambda image: (image.acquisition_number, image.image_type),
)


def group_images(images: Iterable[DicomImage]) -> list[list[DicomImage]]:
    """Images that may form a stack: one series, frame of reference, matrix, kernel, pixel spacing and orientation.

    Without a SeriesInstanceUID the series number takes its place. Images that lie at the same positions are told apart
    by acquisition and image type, and a stack that changes its slice spacing is parted there.

    Raises:
        InvalidGeometry: more orientations in one series than any scanner makes.
    """
    by_series: defaultdict[Hashable, list[DicomImage]] = defaultdict(list)
    for image in images:
        by_series[image.series_uid or image.series_number].append(image)
    return [
        part
        for series in by_series.values()
        for group in _same_grid(series)
        for phase in _phases(group)
        for part in _even_parts(phase)
    ]


def drop_duplicates(images: Sequence[DicomImage]) -> list[DicomImage]:
    """The images without copies of the same instance.

    Copies share position, SOPInstanceUID and frame; where the UID is empty, their files are equal byte for byte.
    Position is part of it because some anonymisers give every slice the same UID.
    """
    by_position: defaultdict[tuple[float, ...] | None, list[DicomImage]] = defaultdict(list)
    for image in images:
        by_position[image.position_mm].append(image)
    unique: list[DicomImage] = []
    for same_position in by_position.values():
        instances: dict[tuple[str, int | None], DicomImage] = {}
        for image in same_position:
            alone = len(same_position) == 1
            instances.setdefault((image.sop_instance_uid or ("" if alone else _file_digest(image)), image.frame), image)
        unique.extend(instances.values())
    return unique


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
    normal = image_axes(images[0].orientation)[2]
    return sorted(images, key=lambda image: float(np.dot(normal, np.asarray(image.position_mm))))


def image_axes(
    orientation: Orientation | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, down a column and along the normal (LPS).

    Raises:
        InvalidGeometry: the cosines are no unit vectors, or parallel.
    """
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


def positions_of(images: Sequence[DicomImage]) -> NDArray[np.float64]:
    """Positions of the images' first pixels (K, 3), LPS mm."""
    return np.array([image.position_mm for image in images], dtype=np.float64)


def _same_grid(series: Sequence[DicomImage]) -> list[list[DicomImage]]:
    """Parts of a series with one frame of reference, matrix, kernel, pixel spacing and orientation."""
    all_framed = all(image.frame_of_reference_uid for image in series)
    groups: defaultdict[Hashable, list[list[DicomImage]]] = defaultdict(list)
    for image in series:
        key = (image.frame_of_reference_uid if all_framed else "", image.rows, image.columns, image.kernel)
        for group in groups[key]:
            if _parallel(group[0], image):
                group.append(image)
                break
        else:
            groups[key].append([image])
        if len(groups[key]) > _MAX_ORIENTATIONS:  # each image is compared with each: hostile ones would take hours
            raise InvalidGeometry(
                f"A series holds images in more than {_MAX_ORIENTATIONS} orientations or pixel spacings."
                " Send only the CT series to segment."
            )
    return [group for groups_of_key in groups.values() for group in groups_of_key]


def _phases(group: list[DicomImage]) -> list[list[DicomImage]]:
    """Sets of images that lie at positions of their own, if there is an attribute that tells them apart."""
    if not _has_doubles(group):
        return [group]
    for phase in _PHASES:
        parts: defaultdict[Hashable, list[DicomImage]] = defaultdict(list)
        for image in group:
            parts[phase(image)].append(image)
        if len(parts) > 1 and not any(_has_doubles(part) for part in parts.values()):
            return list(parts.values())
    return [group]


def _has_doubles(images: Sequence[DicomImage]) -> bool:
    """Whether two different images lie at one position; copies of one instance do not count."""
    try:
        ordered = sort_along_normal(drop_duplicates(images))
        steps = np.diff(positions_of(ordered) @ image_axes(ordered[0].orientation)[2])
    except InvalidGeometry:
        return False  # which will be said when they are stacked
    return bool((steps < SAME_POSITION_MM).any())


def _even_parts(images: list[DicomImage]) -> list[list[DicomImage]]:
    """The parts of a stack that changes its slice spacing for good; the stack itself where it does not."""
    try:
        ordered = sort_along_normal(drop_duplicates(images))
        normal = image_axes(ordered[0].orientation)[2]
    except InvalidGeometry:
        return [images]  # which will be said when they are stacked
    if len(ordered) < 2 * MIN_SLICES:
        return [images]
    positions_mm = positions_of(ordered)
    try:
        measure_spacing(positions_mm, normal)
    except InvalidGeometry:
        runs = runs_of_even_spacing(positions_mm, normal)
        if len(runs) > 1 and all(run.stop - run.start >= MIN_SLICES for run in runs):
            return [ordered[run] for run in runs]
    return [images]


def _parallel(first: DicomImage, second: DicomImage) -> bool:
    """Whether two images have the same pixel spacing and orientation (or lack the same)."""
    for a, b in ((first.orientation, second.orientation), (first.pixel_spacing_mm, second.pixel_spacing_mm)):
        if a is None or b is None:
            if a is not b:
                return False
        elif max(abs(x - y) for x, y in zip(a, b, strict=True)) > SAME_ORIENTATION:
            return False
    return True


def _file_digest(image: DicomImage) -> str:
    with image.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
