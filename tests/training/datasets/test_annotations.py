"""Outlines of real CTs that the default bundle learns from: they say what they mean, and lie where the organs are."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.support.reading import real_scan
from training.assembly import Split, open_assembly
from training.datasets.description import read_description
from training.datasets.harmonize import Grid, harmonize, read_labelled_scan
from training.datasets.layout import find_cases
from training.labels import BY_NAME
from training.store import open_case

ANNOTATIONS = Path(__file__).parents[3] / "training" / "annotations"
DESCRIPTIONS = sorted(ANNOTATIONS.glob("annotated_*.yaml"))
#: HU that the middle half of an organ's voxels must lie within, in these CTs.
PLAUSIBLE_HU = {
    "lung": (-960, -500), "liver": (10, 160), "spleen": (20, 200), "kidney": (5, 260), "aorta": (10, 450),
    "stomach": (-1000, 120), "inferior_vena_cava": (60, 400), "pancreas": (0, 200), "kidney_cyst": (-30, 45),
}  # fmt: skip


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda path: path.stem)
def test_label_maps_hold_what_their_description_says_is_annotated(description: Path) -> None:
    dataset = read_description(str(description))
    for part in dataset.fewer:
        label_map = np.asarray(nibabel.load(ANNOTATIONS / "labels" / f"{part.cases}.nii.gz").dataobj)
        found = {name for value in np.unique(label_map[label_map > 0]) for name in dataset.values[int(value)]}
        assert {"lung_right", "lung_left", "aorta"} <= found <= set(part.supervised)


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda path: path.stem)
def test_outlines_lie_on_the_organs_of_their_ct(description: Path, tmp_path: Path) -> None:
    dataset = read_description(str(description))
    for part in dataset.fewer:
        scan = real_scan(part.cases)
        (tmp_path / "cts" / part.cases).mkdir(parents=True)
        for image in scan.rglob("*.dcm"):
            (tmp_path / "cts" / part.cases / image.name).symlink_to(image)
    shutil.copytree(ANNOTATIONS / "labels", tmp_path / "cts" / "labels")
    store = tmp_path / "store"
    outcomes = harmonize(tmp_path / "cts", dataset, store, Grid((2.0, 2.0, 2.0), -300.0), processes=1)
    assert [outcome.status for outcome in outcomes] == ["written"] * 2
    for name in open_assembly(store).scans:
        case = open_case(store, name)
        assert case.hu is not None
        for organ, (low, high) in PLAUSIBLE_HU.items():
            channels = [label.channel for label in BY_NAME.values() if label.name in (organ, f"{organ}_right")]
            inside = case.labels[case.codes] >> np.uint64(channels[0]) & np.uint64(1) == 1
            if inside.any():
                quartiles = np.quantile(case.hu[inside], (0.25, 0.75))
                assert low < quartiles[0] < quartiles[1] < high, f"{name} {organ}"
    splits = {name.partition("-")[2]: split for name, split in open_assembly(store).splits.items()}
    assert splits.get("kits_KiTS-00072_partial", Split.TEST) is Split.TEST  # what docs/default-bundle.md measures on
    assert splits.get("cort_liver_matrad", Split.TRAIN) is splits.get("cptac_pda_C3L-00189", Split.TRAIN) is Split.TRAIN


def test_the_scan_that_is_only_measured_on_reads_with_its_labels() -> None:
    dataset = read_description(str(ANNOTATIONS / "example_ct_dicom.yaml"))
    (case,) = find_cases(real_scan("totalsegmentator_example"), dataset)
    labelled = read_labelled_scan(case, dataset)
    for organ, least_ml in (("liver", 500), ("spleen", 200), ("stomach", 100), ("aorta", 15)):
        inside = labelled.bits >> np.uint32(BY_NAME[organ].channel) & 1 == 1
        assert np.count_nonzero(inside) * np.prod(labelled.spacing_mm) / 1000 > least_ml
        low, high = PLAUSIBLE_HU[organ]
        assert low < np.median(labelled.hu[inside]) < high
