"""Rules as data: the reference's voxel counts, worked by hand into millilitres."""

from dataclasses import asdict

import pytest

from model_export.manifest import label_entry
from model_export.rules import (
    CutBelow,
    KeepLargest,
    MaxComponents,
    MinVolume,
    SideOfPair,
    WithinHosts,
    postprocessing_rules,
    reference_rules,
)
from training.checkpoint import Calibration
from training.labels import BY_NAME, LABELS, LESIONS, ORGANS


@pytest.mark.parametrize(
    ("name", "ml", "count"),
    [
        ("kidney_tumor", 0.27, 5),  # 80 voxels of 3.375 mm^3
        ("liver_tumor", 0.0675, 20),  # 20
        ("pancreas_tumor", 0.3375, 1),  # 100
        ("hepatic_vessel_tumor", 0.27, 10),  # 80
        ("lung_tumor", 0.10125, 10),  # 30
        ("colon_tumor", 0.3375, 3),  # 100
        ("kidney_cyst", 0.0675, 20),  # 20
    ],
)
def test_lesion_rules_are_the_reference_limits_inside_the_hosts(name: str, ml: float, count: int) -> None:
    assert postprocessing_rules(BY_NAME[name]) == (
        WithinHosts(closing_mm=3.0, dilation_mm=3.0),
        MinVolume(ml=ml),
        MaxComponents(count=count),
    )


def test_a_calibrated_minimum_raises_the_limit_and_never_lowers_it() -> None:
    def least(calibrated: float) -> list[float]:
        rules = postprocessing_rules(
            BY_NAME["kidney_tumor"], Calibration(lesion_volumes_ml={"kidney_tumor": calibrated})
        )
        return [rule.ml for rule in rules if isinstance(rule, MinVolume)]

    assert (least(0.0), least(0.1), least(0.5)) == ([0.27], [0.27], [0.5])
    calibration = Calibration({"kidney_tumor": 0.4}, {"kidney_tumor": 0.8}, {"kidney_tumor": 0.5})
    entry = label_entry("kidney_tumor", ["kidney_tumor"], calibration)
    assert entry["threshold"] == 0.4
    assert {"rule": "min_peak", "probability": 0.8} in entry["postprocessing"]["viscera"]
    assert {"rule": "min_volume", "ml": 0.5} in entry["postprocessing"]["viscera"]
    assert entry["postprocessing"]["reference"] == [asdict(rule) for rule in reference_rules(BY_NAME["kidney_tumor"])]


def test_organs_keep_one_component_and_its_cut_pieces_except_branching_vessels() -> None:
    unfiltered = {label.name for label in ORGANS if postprocessing_rules(label) == ()}
    assert unfiltered == {"portal_and_splenic_vein", "hepatic_vessel"}
    kept = [postprocessing_rules(label) for label in ORGANS if label.name not in unfiltered]
    assert kept == [(KeepLargest(count=1, cut_pieces_ml=1.0),)] * 23


def test_every_label_has_rules_and_every_lesion_a_host_to_lie_in() -> None:
    assert len([postprocessing_rules(label) for label in LABELS]) == 32
    assert all(label.hosts for label in LESIONS)


def test_reference_rules_are_those_of_the_published_implementation() -> None:
    special = {
        "portal_and_splenic_vein": (CutBelow(organ="pancreas"),),
        "hepatic_vessel": (),
        "lung_right": (SideOfPair(partner="lung_left", side="right"),),
        "lung_left": (SideOfPair(partner="lung_right", side="left"),),
        "kidney_tumor": (WithinHosts(closing_mm=3.0, dilation_mm=3.0, components=2),),
        "liver_tumor": (WithinHosts(closing_mm=3.0, dilation_mm=3.0, components=1),),
    }
    for label in LABELS:
        plain = (KeepLargest(count=1),) if label in ORGANS else ()
        assert reference_rules(label) == special.get(label.name, plain), label.name


def test_a_rule_about_an_organ_that_the_model_lacks_is_left_out() -> None:
    vein = "portal_and_splenic_vein"
    assert label_entry(vein, [vein, "pancreas"])["postprocessing"]["reference"] == [
        {"rule": "cut_below", "organ": "pancreas"}
    ]
    assert label_entry(vein, [vein])["postprocessing"] == {"viscera": [], "reference": []}
