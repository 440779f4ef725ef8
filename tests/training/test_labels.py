"""The 32 labels: order, hosts, colours and codes."""

import re

import pytest
from pydicom.sr.codedict import codes

from training.labels import BY_NAME, LABELS, LEFT, LESIONS, ORGANS, RIGHT, Code, Label, LabelKind, channels

# The channel list of the paper and of its code, in its own words.
TAXONOMY = """
    Spleen, Right Kidney, Left Kidney, Gall Bladder, Esophagus, Liver, Stomach, Aorta, Postcava,
    Portal Vein and Splenic Vein, Pancreas, Right Adrenal Gland, Left Adrenal Gland, Duodenum, Hepatic Vessel,
    Right Lung, Left Lung, Colon, Intestine, Rectum, Bladder, Prostate, Left Head of Femur, Right Head of Femur,
    Celiac Trunk, Kidney Tumor, Liver Tumor, Pancreas Tumor, Hepatic Vessel Tumor, Lung Tumor, Colon Tumor, Kidney Cyst
"""
NAMES = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior_vena_cava", "portal_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
    "duodenum", "hepatic_vessel", "lung_right", "lung_left", "colon", "small_intestine", "rectum", "urinary_bladder",
    "prostate", "femur_head_left", "femur_head_right", "celiac_trunk", "kidney_tumor", "liver_tumor",
    "pancreas_tumor", "hepatic_vessel_tumor", "lung_tumor", "colon_tumor", "kidney_cyst",
)  # fmt: skip
BY_LABEL = pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)


@pytest.fixture(scope="module")
def snomed() -> dict[str, set[str]]:
    """Meanings of each SNOMED CT code that DICOM uses, in lower case."""
    meanings: dict[str, set[str]] = {}
    for keyword in dir(codes.SCT):
        concept = getattr(codes.SCT, keyword)
        if hasattr(concept, "scheme_designator"):
            meanings.setdefault(concept.value, set()).add(concept.meaning.lower())
    return meanings


def test_order_is_the_papers() -> None:
    assert tuple(label.prompt for label in LABELS) == tuple(re.split(r",\s+", TAXONOMY.strip()))
    assert tuple(label.name for label in LABELS) == NAMES
    assert [label.index for label in LABELS] == list(range(1, 33))
    assert [label.channel for label in LABELS] == list(range(32))


def test_25_organs_6_tumours_and_a_cyst() -> None:
    assert [label.kind for label in LABELS] == [LabelKind.ORGAN] * 25 + [LabelKind.TUMOR] * 6 + [LabelKind.CYST]
    assert LABELS[:25] == ORGANS
    assert LABELS[25:] == LESIONS


def test_names_and_colours_tell_labels_apart() -> None:
    for values in ({x.name for x in LABELS}, {x.display_name for x in LABELS}, {x.color for x in LABELS}):
        assert len(values) == 32
    assert all(0 <= part <= 255 for label in LABELS for part in label.color)


@BY_LABEL
def test_hosts_are_organs(label: Label) -> None:
    assert bool(label.hosts) == (label in LESIONS)
    assert all(BY_NAME[host].kind is LabelKind.ORGAN for host in label.hosts)


@BY_LABEL
def test_paired_organs_have_a_side(label: Label) -> None:
    side = {"right": RIGHT, "left": LEFT}.get(label.name.rpartition("_")[2])
    assert label.laterality == side
    if side is not None:
        other = {"right": "left", "left": "right"}[label.name.rpartition("_")[2]]
        assert BY_NAME[label.name.rpartition("_")[0] + "_" + other].type == label.type


def test_there_are_four_pairs() -> None:
    assert sum(label.laterality is not None for label in LABELS) == 8


@BY_LABEL
def test_lesions_name_their_site_and_organs_are_theirs(label: Label) -> None:
    assert (label.anatomic_region is not None) == (label in LESIONS)
    if label.anatomic_region is not None:
        assert label.anatomic_region in {BY_NAME[host].type for host in label.hosts}


@BY_LABEL
def test_codes_are_snomed_ct_as_dicom_uses_it(label: Label, snomed: dict[str, set[str]]) -> None:
    for code in (label.type, label.laterality, label.anatomic_region):
        if code is not None:
            assert any(code.meaning.lower() in meaning for meaning in snomed[code.value]), code


def test_categories_are_those_of_cid_7150(snomed: dict[str, set[str]]) -> None:
    """Only the values: the wording of these two changed between editions of PS3.16."""
    assert {label.category.value for label in ORGANS} == {"123037004"} <= snomed.keys()
    assert {label.category.value for label in LESIONS} == {"49755003"} <= snomed.keys()
    assert {label.type for label in LESIONS} == {Code("108369006", "Neoplasm"), Code("367643001", "Cyst")}


def test_channels_follow_the_order_asked_for() -> None:
    assert channels(["kidney_cyst", "spleen", "liver"]) == [31, 0, 5]
    with pytest.raises(KeyError):
        channels(["spleen", "appendix"])
