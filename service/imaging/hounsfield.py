"""Whether intensities are Hounsfield units, and the one form in which they go on: int16, air at -1024 and above.

Rounding to whole HU loses at most 0.5 HU, far below the noise of any CT. int16 holds the extended scale of metal.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import NotHounsfield
from service.imaging.geometry import Affine
from service.imaging.volume import Notice

#: The lowest value of the HU scale as scanners store it. Anything below is padding around the reconstruction circle.
AIR_HU = -1024

#: Above the ordinary 12-bit scale (-1024..3071) only metal is found; a volume full of such values is not HU.
ORDINARY_MAX_HU = 3071
MAX_METAL_FRACTION = 0.25

#: Soft tissue, fat, water and blood lie here in every CT of a trunk, with or without contrast.
SOFT_TISSUE_HU = (-300, 300)
MIN_SOFT_TISSUE_FRACTION = 0.001

#: The border of a slice is air, padding or, in a small field of view, soft tissue.
MAX_BORDER_HU = 500.0

#: Noise alone spans more than this in any CT.
MIN_RANGE_HU = 100.0

_INT16 = np.iinfo(np.int16)
_REMEDY = "Send the CT in Hounsfield units (water 0, air -1000), before any windowing or normalisation."


@dataclass
class ValueRange:
    """The range of the values as they were before rounding and clamping, gathered while a volume is read."""

    minimum: float = np.inf
    maximum: float = -np.inf
    not_finite: int = 0

    def include(self, values: NDArray[np.number]) -> None:
        """Widen the range by an array of values; NaN and infinite ones are only counted."""
        if np.issubdtype(values.dtype, np.floating):
            finite = np.isfinite(values)
            if not finite.all():
                self.not_finite += int(values.size - np.count_nonzero(finite))
                values = values[finite]
        if values.size:
            self.minimum = min(self.minimum, float(values.min()))
            self.maximum = max(self.maximum, float(values.max()))

    def merge(self, other: "ValueRange") -> None:
        """Widen the range by another."""
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.not_finite += other.not_finite


def to_int16(values: NDArray[np.number]) -> NDArray[np.int16]:
    """Values rounded to whole HU and clipped to what int16 holds; NaN becomes air (such a volume is refused later)."""
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint(np.nan_to_num(values, nan=AIR_HU, posinf=_INT16.max, neginf=_INT16.min))
    hu: NDArray[np.int16] = np.clip(values, _INT16.min, _INT16.max).astype(np.int16)
    return hu


def accept_hounsfield(hu: NDArray[np.int16], found: ValueRange) -> tuple[Notice, ...]:
    """Clamp padding in `hu` to air, in place, after making sure that the values are Hounsfield units.

    Args:
        hu: The volume, C-contiguous along its first axis.
        found: The range before rounding.

    Raises:
        NotHounsfield: NaN, constant, normalised, 8-bit, inverted, offset by 1024, or out of any CT's range.
    """
    _check_range(found)
    below = negative = metal = soft_tissue = 0
    for plane in hu:  # plane by plane: a comparison over the whole volume would double its memory
        padding = plane < AIR_HU
        below += int(np.count_nonzero(padding))
        negative += int(np.count_nonzero((plane >= AIR_HU) & (plane < 0)))
        metal += int(np.count_nonzero(plane > ORDINARY_MAX_HU))
        soft_tissue += int(np.count_nonzero((plane >= SOFT_TISSUE_HU[0]) & (plane <= SOFT_TISSUE_HU[1])))
        np.maximum(plane, AIR_HU, out=plane)
    limits = f"The values run from {found.minimum:g} to {found.maximum:g}"
    if not negative and below < hu.size:
        raise NotHounsfield(_offset_sentence(f"{limits}, and apart from padding"))
    if metal > MAX_METAL_FRACTION * hu.size:
        raise NotHounsfield(
            f"{limits}, and {metal / hu.size:.0%} of them exceed {ORDINARY_MAX_HU} HU, where only metal lies. {_REMEDY}"
        )
    if soft_tissue < MIN_SOFT_TISSUE_FRACTION * hu.size:
        raise NotHounsfield(
            f"{limits}, and almost none lies between {SOFT_TISSUE_HU[0]} and {SOFT_TISSUE_HU[1]} HU,"
            f" where soft tissue is. {_REMEDY}"
        )
    _check_not_inverted(hu, found)
    if not below:
        return ()
    return (
        Notice(
            "padding-clamped",
            f"{below} voxels ({below / hu.size:.1%}) below {AIR_HU} HU, down to {found.minimum:g}, were set to {AIR_HU}"
            " (padding around the reconstruction, or interpolation).",
        ),
    )


def _check_not_inverted(hu: NDArray[np.int16], found: ValueRange) -> None:
    """Refuse values that fall where density rises: around a patient lies air, and a volume of bone has no border of it.

    Raises:
        NotHounsfield: the border of the middle plane is denser than bone.
    """
    middle = hu[len(hu) // 2]
    border = np.concatenate([middle[0], middle[-1], middle[:, 0], middle[:, -1]])
    if float(np.median(border)) > MAX_BORDER_HU:
        raise NotHounsfield(
            f"The values run from {found.minimum:g} to {found.maximum:g}, and the border of the picture has a median of"
            f" {np.median(border):g}, where air should be: they are inverted. {_REMEDY}"
        )


def _check_range(found: ValueRange) -> None:
    if found.not_finite:
        raise NotHounsfield(
            f"NaN or infinite values, {found.not_finite} in all. Set them to {AIR_HU} (air) and send the scan again."
        )
    low, high = found.minimum, found.maximum
    span = f"The values run from {low:g} to {high:g}"
    if low == high:
        raise NotHounsfield(f"Every voxel has the value {low:g}: the scan is blank. {_REMEDY}")
    if high - low < MIN_RANGE_HU:
        raise NotHounsfield(f"{span}, as after normalisation. {_REMEDY}")
    if low >= 0 and high <= 255:
        raise NotHounsfield(f"{span}, as in an 8-bit picture. {_REMEDY}")
    if low >= 0:
        raise NotHounsfield(_offset_sentence(f"{span}, and"))
    if low < _INT16.min or high > _INT16.max:
        raise NotHounsfield(f"{span}, beyond even the extended HU scale of metal. {_REMEDY}")


def _offset_sentence(found: str) -> str:
    return (
        f"{found} no value is negative, though fat and air are below 0 HU. Stored values without their rescale are"
        f" offset by 1024: subtract it. {_REMEDY}"
    )


def input_sha256(hu: NDArray[np.int16], affine: Affine) -> str:
    """SHA-256 over the shape, the affine and the HU values, the same however the scan was packed.

    Args:
        hu: Indexed (i, j, k); hashed as little-endian int16 with i running fastest.
        affine: (4, 4), voxel index to RAS mm.
    """
    digest = hashlib.sha256()
    digest.update(np.asarray(hu.shape, dtype="<i8").tobytes())
    digest.update((np.asarray(affine, dtype="<f8") + 0.0).tobytes())  # + 0.0: -0.0 and 0.0 are one position
    for plane in hu.T:
        digest.update(np.ascontiguousarray(plane, dtype="<i2").data)
    return digest.hexdigest()
