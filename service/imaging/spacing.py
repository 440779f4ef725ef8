"""Slice positions as an even grid: the step from slice to slice, the places left empty, and what is off.

Positions decide; SliceThickness, SpacingBetweenSlices and instance numbers are known to lie. What was measured stands
in the result, and in the sentence of a refusal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidGeometry, MissingSlices
from service.imaging.geometry import MAX_AXIS_COSINE

#: Slices closer than this share a position.
SAME_POSITION_MM = 0.01

#: A slice may lie this far from its even place: positions rounded to 0.1 mm, or a tenth of the spacing.
POSITION_TOLERANCE_MM = 0.1
POSITION_TOLERANCE_OF_SPACING = 0.1

#: Missing slices are interpolated over at most this distance between neighbours: lesions of a centimetre still show ...
MAX_GAP_MM = 10.0
#: ... at most so many in a row ...
MAX_GAP_SLICES = 2
#: ... and as at most this share of the stack.
MAX_GAP_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class SliceSpacing:
    """An even grid along a stack of sorted slices.

    `step_mm` (3,) leads from each place to the next, in LPS; `places` holds the index of each slice on the grid, which
    has empty places where slices are missing. `tilt_degrees` is the angle between the step and the slices' normal;
    `largest_deviation_mm` how far a slice lies from its place at most.
    """

    step_mm: NDArray[np.float64]
    places: tuple[int, ...]
    normal_spacing_mm: float
    tilt_degrees: float
    largest_deviation_mm: float

    @property
    def count(self) -> int:
        """Places on the grid, empty ones included."""
        return self.places[-1] + 1

    @property
    def missing(self) -> int:
        """Places without a slice."""
        return self.count - len(self.places)


def measure_spacing(positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> SliceSpacing:
    """The even grid of slices at `positions_mm` (K, 3), sorted along their unit `normal` (3,); all in LPS.

    Raises:
        InvalidGeometry: doubled positions, uneven spacing, or slices off one line.
        MissingSlices: more slices are missing than may be interpolated.
    """
    steps = np.diff(positions_mm @ normal)
    if doubled := int(np.count_nonzero(steps < SAME_POSITION_MM)):
        raise InvalidGeometry(
            f"{doubled} of {len(positions_mm)} slices lie at the position of another one. The series holds several"
            " phases or reconstructions: send one of them."
        )
    usual = float(np.median(steps))
    tolerance = max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_OF_SPACING * usual)
    strides = np.maximum(np.rint(steps / usual), 1.0)
    if np.abs(steps - strides * usual).max() > tolerance:
        raise InvalidGeometry(
            f"The slices are unevenly spaced, {steps.min():.4g} to {steps.max():.4g} mm apart."
            " Send an evenly reconstructed series."
        )
    places = np.concatenate([[0], np.cumsum(strides)]).astype(int)
    step, tilt = _step(positions_mm, normal, int(places[-1]))
    even = positions_mm[0] + places[:, None] * step
    off = float(np.linalg.norm(positions_mm - even, axis=1).max())
    if off > tolerance:
        raise InvalidGeometry(
            f"The slices do not lie on one line: one is {off:.3g} mm from its even place. Send an evenly"
            " reconstructed series."
        )
    spacing = SliceSpacing(step, tuple(int(place) for place in places), float(step @ normal), tilt, off)
    _check_gaps(spacing, steps, usual)
    return spacing


def runs_of_even_spacing(positions_mm: NDArray[np.float64], normal: NDArray[np.float64]) -> list[slice]:
    """Where a stack changes its spacing for good: the runs of slices that are even in themselves.

    A gap makes two runs with a run of one step between them. Slices at a change belong to the run before it.
    """
    steps = np.diff(positions_mm @ normal)
    runs: list[slice] = []
    start = 0
    for end in range(1, len(steps) + 1):
        tolerance = max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_OF_SPACING * steps[start])
        if end == len(steps) or abs(steps[end] - steps[start]) > tolerance:
            runs.append(slice(start if not runs else start + 1, end + 1))
            start = end
    return runs


def _step(
    positions_mm: NDArray[np.float64], normal: NDArray[np.float64], steps: int
) -> tuple[NDArray[np.float64], float]:
    """The vector from place to place and its angle to the normal in degrees; 0 within the rounding of positions."""
    whole = positions_mm[-1] - positions_mm[0]
    step: NDArray[np.float64] = whole / steps
    along = float(whole @ normal)
    sideways_mm = float(np.linalg.norm(whole - along * normal))
    if sideways_mm <= POSITION_TOLERANCE_MM:  # rounded positions: over a short stack they would pass for a tilt
        return (step @ normal) * normal, 0.0
    tilt = sideways_mm / along
    return step, float(np.degrees(np.arctan(tilt))) if tilt > MAX_AXIS_COSINE else 0.0


def _check_gaps(spacing: SliceSpacing, steps: NDArray[np.float64], usual: float) -> None:
    """Refuse gaps too large to be interpolated.

    Raises:
        MissingSlices: with what was measured.
    """
    if not spacing.missing:
        return
    in_a_row = max(np.diff(spacing.places)) - 1
    few = spacing.missing <= MAX_GAP_SHARE * spacing.count
    if steps.max() > MAX_GAP_MM or in_a_row > MAX_GAP_SLICES or not few:
        tilted = f" The slices are also tilted by {spacing.tilt_degrees:.1f} degrees." if spacing.tilt_degrees else ""
        raise MissingSlices(
            f"Slices are missing (about {spacing.missing}): neighbours are {usual:.4g} mm apart, but up to"
            f" {steps.max():.4g} mm. At most {MAX_GAP_SLICES} in a row over {MAX_GAP_MM:g} mm, and a tenth of all,"
            f" are interpolated.{tilted} Send the whole series."
        )
