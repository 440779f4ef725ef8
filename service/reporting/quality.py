"""Checks of the scan itself, in every result: can its numbers be trusted, and what do they cover?

Always the same seven, in this order, so that a program finds each:

    modality             what the headers say
    hu-plausibility      peaks of air, fat and soft tissue lie where HU put them
    body-region          by the organs found
    slice-thickness      what is smaller than a slice is lost
    spacing-regularity   deviation of slices from even places, interpolated ones
    field-of-view        organs that go on outside
    contrast-phase       a guess from the vessels' HU

Structures are known by their SNOMED CT codes, whatever a bundle calls its labels.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.imaging.volume import Acquisition, SourceFormat, Volume
from service.reporting.regions import Compass
from service.reporting.schema import OrganFinding, QualityCheck, Severity

# SNOMED CT codes of structures that tell a region of the body.
_REGIONS: Final[Mapping[str, frozenset[str]]] = {
    "chest": frozenset({"39607008", "32849002"}),  # lung, esophagus
    "abdomen": frozenset({"10200004", "78961009", "64033007", "15776009"}),  # liver, spleen, kidney, pancreas
    "pelvis": frozenset({"89837001", "34402009", "41216001"}),  # bladder, rectum, prostate
}
_AORTA: Final = "15825003"
_PORTAL_VEIN: Final = "32764006"

#: HU ranges in which a peak is looked for, and those in which it belongs. Lungs lie above what is looked at as air.
_PEAKS: Final[Mapping[str, tuple[tuple[int, int], tuple[int, int]]]] = {
    "air": ((-1023, -890), (-1023, -950)),
    "fat": ((-250, -20), (-140, -50)),
    "soft tissue": ((-19, 250), (0, 150)),
}
_SMOOTHING_HU = 11
_LEAST_SHARE = 0.002
_SAMPLED_VOXELS = 2_000_000

#: Slices above this are thick for lesions of a centimetre.
_THICK_MM = 5.0

# Aorta (HU) without contrast agent, and enhanced as only in the arterial phase; veins that lag behind by so much.
_NATIVE_BELOW_HU = 80.0
_ARTERIAL_FROM_HU = 180.0
_VEINS_LAG_HU = 40.0


def check_quality(volume: Volume, organs: Sequence[OrganFinding]) -> tuple[QualityCheck, ...]:
    """The seven checks of a scan and of the organs found in it."""
    acquisition = volume.acquisition or Acquisition()
    return (
        _modality(volume, acquisition),
        _hu_plausibility(volume.hu),
        _body_region(organs),
        _slice_thickness(volume, acquisition),
        _spacing_regularity(volume, acquisition),
        _field_of_view(organs),
        _contrast_phase(organs, acquisition),
    )


def _modality(volume: Volume, acquisition: Acquisition) -> QualityCheck:
    if volume.source_format is SourceFormat.NIFTI:
        return _info("modality", "A NIfTI file states no modality; its values are those of a CT.")
    if not acquisition.modality:
        return _warning("modality", "The images state no modality; their SOP class says CT.")
    return _info("modality", f"The images state the modality {acquisition.modality}.")


def _hu_plausibility(hu: NDArray[np.int16] | NDArray[np.float32]) -> QualityCheck:
    found = hu_peaks(hu)
    off = [f"{name} at {peak} HU" for name, peak in found.items() if not _belongs(name, peak)]
    said = ", ".join(f"{name} {peak}" for name, peak in found.items()) or "none"
    if "soft tissue" not in found:
        return _severe("hu-plausibility", f"No peak of soft tissue was found among the HU; peaks: {said}.")
    if len(off) > 1:
        return _severe("hu-plausibility", f"The HU scale looks shifted: {' and '.join(off)}.")
    if off:
        return _warning("hu-plausibility", f"A peak lies where HU do not put it: {off[0]}.")
    return _info("hu-plausibility", f"The peaks lie where HU put them: {said} HU.")


def hu_peaks(hu: NDArray[np.int16] | NDArray[np.float32]) -> dict[str, int]:
    """The HU of the peaks of air, fat and soft tissue; one that the scan does not show is left out."""
    step = max(1, round((hu.size / _SAMPLED_VOXELS) ** (1 / 3)))
    sample = hu[::step, ::step, ::step]
    if sample.dtype != np.int16:
        sample = np.rint(sample)
    shifted = np.clip(sample, -1024, 3071).astype(np.int16) + np.int16(1024)
    counts = np.bincount(shifted.ravel(order="K"), minlength=4096).astype(np.float64)
    counts[0] = 0.0  # padding, clamped
    smooth = np.convolve(counts, np.ones(_SMOOTHING_HU), mode="same")
    peaks: dict[str, int] = {}
    for name, ((low, high), _) in _PEAKS.items():
        part = smooth[low + 1024 : high + 1024 + 1]
        place = int(part.argmax())
        inside = 0 < place < len(part) - 1  # at the end of the range it is the flank of something else
        if inside and part[place] >= _LEAST_SHARE * sample.size:
            peaks[name] = low + place
    return peaks


def _belongs(name: str, peak: int) -> bool:
    low, high = _PEAKS[name][1]
    return low <= peak <= high


def _body_region(organs: Sequence[OrganFinding]) -> QualityCheck:
    present = {organ.codes.type.value for organ in organs if organ.present}
    regions = [region for region, codes in _REGIONS.items() if codes & present]
    if not regions:
        return _warning("body-region", "No organ was found that tells which region of the body is shown.")
    return _info("body-region", f"By the organs found the scan shows {_listed(regions)}.")


def _slice_thickness(volume: Volume, acquisition: Acquisition) -> QualityCheck:
    is_dicom = volume.source_format is SourceFormat.DICOM
    across = 2 if is_dicom else Compass(volume.geometry).axis_towards(2)
    thickness_mm = max(acquisition.slice_thickness_mm or 0.0, volume.geometry.spacing_mm[across])
    if thickness_mm > _THICK_MM:
        return _warning(
            "slice-thickness", f"Slices of {thickness_mm:.3g} mm: lesions smaller than that are lost or blurred."
        )
    return _info("slice-thickness", f"Slices of {thickness_mm:.3g} mm.")


def _spacing_regularity(volume: Volume, acquisition: Acquisition) -> QualityCheck:
    if volume.source_format is SourceFormat.NIFTI:
        return _info("spacing-regularity", "A NIfTI grid is even by its form; what was converted to it is not known.")
    off = f"slices lie within {acquisition.largest_deviation_mm:.2f} mm of their even places"
    if acquisition.interpolated_slices:
        return _warning(
            "spacing-regularity", f"Missing slices that were interpolated: {acquisition.interpolated_slices}; {off}."
        )
    return _info("spacing-regularity", f"No slice is missing; {off}.")


def _field_of_view(organs: Sequence[OrganFinding]) -> QualityCheck:
    cut = [organ.display_name for organ in organs if organ.cut_by_field_of_view]
    if cut:
        return _warning("field-of-view", f"The field of view cuts {_listed(cut)}; volumes are lower bounds.")
    return _info("field-of-view", "No organ found is cut by the field of view.")


def _contrast_phase(organs: Sequence[OrganFinding], acquisition: Acquisition) -> QualityCheck:
    mean_hu = {organ.codes.type.value: organ.mean_hu for organ in organs if organ.mean_hu is not None}
    aorta, portal = mean_hu.get(_AORTA), mean_hu.get(_PORTAL_VEIN)
    header = "The header names a contrast agent." if acquisition.has_contrast_agent else ""
    if aorta is None:
        return _info("contrast-phase", f"Cannot be told: the aorta was not found or not asked for. {header}".strip())
    if aorta < _NATIVE_BELOW_HU:
        guess = f"Probably without contrast agent: the aorta has {aorta:.0f} HU."
        return _warning("contrast-phase", f"{guess} {header}") if header else _info("contrast-phase", guess)
    veins = "" if portal is None else f", the portal vein {portal:.0f} HU"
    lag = portal is None or aorta - portal > _VEINS_LAG_HU
    phase = "arterial" if aorta >= _ARTERIAL_FROM_HU and lag else "venous"
    return _info("contrast-phase", f"Probably the {phase} phase: the aorta has {aorta:.0f} HU{veins}.")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _info(code: str, message: str) -> QualityCheck:
    return QualityCheck(code=code, severity=Severity.INFO, message=message)


def _warning(code: str, message: str) -> QualityCheck:
    return QualityCheck(code=code, severity=Severity.WARNING, message=message)


def _severe(code: str, message: str) -> QualityCheck:
    return QualityCheck(code=code, severity=Severity.SEVERE, message=message)
