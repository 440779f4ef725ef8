"""The grid a scan must have before it is segmented, whatever its format.

Masks land on the input's own grid, and resampling works axis by axis: the three voxel axes must be perpendicular and
the spacing that of a CT of a person. What is not so is refused with the measured value; nothing is guessed.
"""

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidGeometry, TooFewSlices, UploadTooLarge
from service.imaging.geometry import Affine, Geometry, Shape
from service.imaging.limits import ReadLimits

#: A shorter stack shows no organ whole and fills less than a fifth of one inference window (10 x 2 mm of 192 mm).
MIN_SLICES = 10

#: Cosine of the angle between two voxel axes. 0.002 is 0.11 degrees: 1 mm of displacement over 500 mm. Rounding of
#: direction cosines to 4 decimals stays below 0.0002; a gantry tilt of 1 degree is 0.017.
MAX_AXIS_COSINE = 2e-3

#: Spacing outside these is no CT of a person, or is not in millimetres.
MIN_SPACING_MM = 0.1
MAX_SPACING_MM = 20.0


def check_size(shape: Shape, limits: ReadLimits) -> None:
    """Refuse a declared shape before memory is taken for it.

    Raises:
        TooFewSlices: an axis shorter than MIN_SLICES.
        UploadTooLarge: more voxels than the limits.
    """
    voxels = int(np.prod([int(n) for n in shape], dtype=object))
    size = " x ".join(str(n) for n in shape)
    if voxels > limits.max_voxels:
        raise UploadTooLarge(
            f"The volume has {size} = {voxels} voxels; at most {limits.max_voxels} are accepted. Crop or resample it."
        )
    if min(shape) < MIN_SLICES:
        raise TooFewSlices(
            f"The volume has {size} voxels; at least {MIN_SLICES} slices are needed. Send the whole series."
        )


def checked_geometry(shape: Shape, affine: Affine) -> Geometry:
    """The geometry of a grid that can be segmented.

    Raises:
        InvalidGeometry: not finite, singular, sheared (also a gantry tilt), or spaced like nothing a CT scanner makes.
    """
    if not np.isfinite(affine).all():
        raise InvalidGeometry(
            "The affine holds NaN or infinite values, so the position of the voxels is unknown."
            " Convert the scan from DICOM again."
        )
    if not np.array_equal(affine[3], [0.0, 0.0, 0.0, 1.0]):
        raise InvalidGeometry("The last row of the affine is not 0 0 0 1. Convert the scan from DICOM again.")
    axes = affine[:3, :3]
    with np.errstate(over="ignore"):
        spacing = np.linalg.norm(axes, axis=0)
    if spacing.min() == 0:
        raise InvalidGeometry("The affine is singular: a voxel axis has length 0. Convert the scan from DICOM again.")
    if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
        raise InvalidGeometry(
            "The voxel spacing is " + " x ".join(f"{s:.4g}" for s in spacing) + f" mm; between {MIN_SPACING_MM:g} and"
            f" {MAX_SPACING_MM:g} mm is expected. Check that the geometry is stated in millimetres."
        )
    _check_perpendicular(axes / spacing)
    return Geometry(shape, affine + 0.0)  # + 0.0: no -0 in what is written out


def _check_perpendicular(unit_axes: NDArray[np.float64]) -> None:
    """Refuse sheared axes; columns of `unit_axes` (3, 3) are the directions of i, j, k."""
    cosines = np.abs(unit_axes.T @ unit_axes - np.eye(3))
    if cosines.max() > MAX_AXIS_COSINE:
        first, second = np.unravel_index(int(cosines.argmax()), cosines.shape)
        off_degrees = np.degrees(np.arcsin(min(1.0, float(cosines.max()))))
        if off_degrees > 89.9:
            raise InvalidGeometry(
                "The affine is singular: two voxel axes are parallel. Convert the scan from DICOM again."
            )
        names = "ijk"
        raise InvalidGeometry(
            f"The voxel axes {names[first]} and {names[second]} are {off_degrees:.2f} degrees off a right angle"
            " (a gantry tilt or a sheared affine). Resample the scan to a rectangular grid, for example with dcm2niix."
        )
    if abs(np.linalg.det(unit_axes)) < 0.5:
        raise InvalidGeometry("The affine is singular. Convert the scan from DICOM again.")
