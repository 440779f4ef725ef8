"""Checks of the scan: seven in every result, each moved by what it is about."""

from dataclasses import replace

import numpy as np
import pytest

from service.imaging.volume import Acquisition, SourceFormat
from service.reporting.findings import measure
from service.reporting.quality import hu_peaks
from tests.support.reporting import PROVENANCE, abdomen

CODES = [
    "modality", "hu-plausibility", "body-region", "slice-thickness", "spacing-regularity", "field-of-view",
    "contrast-phase",
]  # fmt: skip


def checks(**changes):
    volume, masks = abdomen()
    return {check.code: check for check in measure(replace(volume, **changes), masks, PROVENANCE).quality}


def test_an_ordinary_scan():
    found = checks()
    assert list(found) == CODES
    assert {check.severity.value for check in found.values()} == {"info"}
    assert found["body-region"].message == "By the organs found the scan shows abdomen."
    assert found["slice-thickness"].message == "Slices of 4 mm."
    assert "aorta was not found" in found["contrast-phase"].message


def test_peaks_are_found_where_they_were_put():
    rng = np.random.default_rng(0)
    parts = [rng.normal(center, 12, (40, 40, 20)) for center in (-990, -100, 45)]
    peaks = hu_peaks(np.concatenate(parts).round().astype(np.int16))
    assert peaks == {name: pytest.approx(hu, abs=8) for name, hu in (("air", -990), ("fat", -100), ("soft tissue", 45))}


@pytest.mark.parametrize(
    ("change", "severity", "said"),
    [
        (lambda hu: hu + 60, "severe", "The HU scale looks shifted: air at"),
        (lambda hu: np.where(hu < -500, -920, hu), "warning", "A peak lies where HU do not put it: air at"),
        (lambda hu: np.where(hu > -500, -90, hu), "severe", "No peak of soft tissue"),
    ],
)
def test_a_scale_that_is_off(change, severity, said):
    rng = np.random.default_rng(1)
    volume, _ = abdomen()
    hu = (change(volume.hu.astype(int)) + rng.normal(0, 2, volume.hu.shape)).astype(np.int16)
    found = checks(hu=hu)["hu-plausibility"]
    assert found.severity.value == severity
    assert said in found.message


def test_what_the_headers_say():
    acquisition = Acquisition("", slice_thickness_mm=7.5, largest_deviation_mm=0.04, interpolated_slices=2)
    found = checks(source_format=SourceFormat.DICOM, acquisition=acquisition)
    assert [found[code].severity.value for code in ("modality", "slice-thickness", "spacing-regularity")] == [
        "warning"
    ] * 3
    assert found["slice-thickness"].message.startswith("Slices of 7.5 mm")
    assert found["spacing-regularity"].message == (
        "Missing slices that were interpolated: 2; slices lie within 0.04 mm of their even places."
    )
