"""The grid a scan must have before it is segmented, whatever its format.

Masks land on the input's own grid. Two voxel axes must be perpendicular; the third may lean on their plane, as the
slices of a tilted gantry do, and the spacing must be that of a CT of a person. What is not so is refused with the
measured value; nothing is guessed.
"""

import numpy as np

from service.errors import InvalidGeometry, TooFewSlices, UploadTooLarge
from service.imaging.geometry import Affine, Geometry, Shape
from service.imaging.limits import ReadLimits
from service.imaging.volume import Notice

#: A shorter stack shows no organ whole and fills less than a fifth of one inference window (10 x 2 mm of 192 mm).
MIN_SLICES = 10

#: Gantries tilt by up to 30 degrees; what leans further is no scan but a broken affine.
MAX_TILT_DEGREES = 45.0

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
        InvalidGeometry: not finite, singular, sheared as no gantry tilts, or spaced like nothing a CT scanner makes.
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
    if np.linalg.matrix_rank(axes / spacing, tol=1e-6) < 3:
        raise InvalidGeometry("The affine is singular: voxel axes are parallel. Convert the scan from DICOM again.")
    geometry = Geometry(shape, affine + 0.0)  # + 0.0: no -0 in what is written out
    _check_shear(geometry)
    return geometry


def tilt_notices(geometry: Geometry) -> tuple[Notice, ...]:
    """That a grid is sheared, and what happens to it; nothing for a rectangular one."""
    if geometry.sheared_axis is None:
        return ()
    return (
        Notice(
            "gantry-tilt",
            f"The slices are tilted by {geometry.tilt_degrees:.1f} degrees. The scan was segmented on a rectangular"
            " grid; the masks lie on the tilted slices.",
        ),
    )


def _check_shear(geometry: Geometry) -> None:
    """Refuse axes that lean too far, or in a way that no stack of slices has.

    Raises:
        InvalidGeometry: with the measured angle.
    """
    try:
        tilt = geometry.tilt_degrees
    except ValueError as error:
        unit = geometry.affine[:3, :3] / np.array(geometry.spacing_mm)
        off = np.degrees(np.arcsin(np.clip(np.abs(unit.T @ unit - np.eye(3)), 0.0, 1.0)))
        pairs = ", ".join(f"{a} and {b} by {off['ijk'.index(a), 'ijk'.index(b)]:.2f}" for a, b in ("ij", "ik", "jk"))
        raise InvalidGeometry(
            f"All three voxel axes are off a right angle ({pairs} degrees), as no stack of slices is."
            " Resample the scan to a rectangular grid."
        ) from error
    if tilt > MAX_TILT_DEGREES:
        raise InvalidGeometry(
            f"The slices are tilted by {tilt:.1f} degrees; up to {MAX_TILT_DEGREES:g} are read."
            " Resample the scan to a rectangular grid, for example with dcm2niix."
        )
