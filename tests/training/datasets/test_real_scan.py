"""A real CT with real labels through harmonize: what a phantom cannot show."""

from pathlib import Path

import numpy as np
import pytest

from training.datasets.description import read_description
from training.datasets.harmonize import Grid, ScanSource, harmonize, read_labelled_scan
from training.datasets.layout import find_cases
from training.datasets.sides import middle_of_body, split_sides
from training.labels import BY_NAME
from training.store import open_case

EXAMPLE = Path(__file__).parents[4] / "shared" / "data" / "totalsegmentator_example"
pytestmark = pytest.mark.skipif(
    not EXAMPLE.is_dir(), reason="No ../shared/data/totalsegmentator_example: put the real scans there."
)
#: The dataset's own layout, but for the names of this one case.
DESCRIPTION = read_description("totalsegmentator").model_copy(
    update={"image": "{case:example}_ct.nii.gz", "label": "{case:example}_ct_labels_v1/{structure}.nii.gz"}
)


def test_its_organs_have_plausible_volumes(tmp_path: Path) -> None:
    (outcome,) = harmonize(EXAMPLE, DESCRIPTION, tmp_path, Grid((3.0, 3.0, 3.0), -300.0), processes=1)
    assert outcome.status == "written"
    source = ScanSource.read(tmp_path, "totalsegmentator-example")
    assert source.remarks == ()
    assert source.volumes_ml["liver"] == pytest.approx(1123, abs=1)
    assert {"lung_right", "lung_left"} <= set(source.cut)
    case = open_case(tmp_path, "totalsegmentator-example")
    assert case.hu is not None
    liver = case.labels[case.codes] >> BY_NAME["liver"].channel & 1 == 1
    assert 20 < np.median(case.hu[liver]) < 90  # an unenhanced liver


def test_sides_that_were_joined_are_told_apart_again() -> None:
    labelled = read_labelled_scan(find_cases(EXAMPLE, DESCRIPTION)[0], DESCRIPTION)
    for organ in ("kidney", "lung", "adrenal_gland"):
        right, left = (
            (labelled.bits >> np.uint32(BY_NAME[f"{organ}_{side}"].channel) & 1).astype(bool)
            for side in ("right", "left")
        )
        both = right | left
        found = split_sides(both, middle_of_body(labelled.hu, both))
        np.testing.assert_array_equal(found[0], right)
        np.testing.assert_array_equal(found[1], left)
