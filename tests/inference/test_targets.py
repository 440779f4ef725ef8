"""Targets: labels, groups and codes."""

from dataclasses import dataclass

import pytest

from service.errors import UnknownLabel
from service.targets import select


@dataclass(frozen=True)
class Code:
    value: str


@dataclass(frozen=True)
class Label:
    name: str
    kind: str
    type: Code


KIDNEY, NEOPLASM = Code("64033007"), Code("108369006")
LABELS = (
    Label("kidney_right", "organ", KIDNEY),
    Label("kidney_left", "organ", KIDNEY),
    Label("liver", "organ", Code("10200004")),
    Label("kidney_tumor", "tumor", NEOPLASM),
    Label("liver_tumor", "tumor", NEOPLASM),
    Label("kidney_cyst", "cyst", Code("367643001")),
)
ORGANS, TUMORS, CYSTS = ("kidney_right", "kidney_left", "liver"), ("kidney_tumor", "liver_tumor"), ("kidney_cyst",)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (None, ORGANS + TUMORS + CYSTS),
        (["all"], ORGANS + TUMORS + CYSTS),
        (["organs"], ORGANS),
        (["tumors"], TUMORS),
        (["tumours"], TUMORS),
        (["cysts"], CYSTS),
        (["lesions"], TUMORS + CYSTS),
        (["liver_tumor", "liver"], ("liver", "liver_tumor")),
        (["64033007"], ("kidney_right", "kidney_left")),
        (["SCT:64033007", "cysts"], ("kidney_right", "kidney_left", "kidney_cyst")),
        (["108369006", "kidney_tumor"], TUMORS),
    ],
)
def test_targets_mean_labels_in_the_order_of_the_model(targets: list[str] | None, names: tuple[str, ...]) -> None:
    assert select(targets, LABELS, "a model") == names


@pytest.mark.parametrize("stranger", ["spleen", "78961009", "SCT:liver", "Liver", "SCT:"])
def test_a_stranger_is_named_with_what_there_is(stranger: str) -> None:
    with pytest.raises(UnknownLabel, match=f"a model has no label, group or code '{stranger}'.*organs.*liver_tumor"):
        select(["liver", stranger], LABELS, "a model")


def test_a_group_without_members_is_refused() -> None:
    with pytest.raises(UnknownLabel, match="'cysts'"):
        select(["cysts"], LABELS[:3], "a model")
