"""The 32 labels of the CLIP-Driven Universal Model: what channel c means, everywhere.

Order and meaning: Liu et al., ICCV 2023, arXiv 2301.00785 (25 organs, 6 tumour types, kidney cyst).
A label's channel is its index - 1.
Codes: SNOMED CT, in the use of DICOM PS3.16 CID 7150 (property category) and the Segmentation IOD (PS3.3 C.8.20.2).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class LabelKind(StrEnum):
    """What sort of structure a label marks."""

    ORGAN = "organ"  #: an anatomical structure
    TUMOR = "tumor"  #: a neoplasm; overlaps its host organ
    CYST = "cyst"  #: a fluid-filled lesion; overlaps its host organ


@dataclass(frozen=True)
class Code:
    """A coded concept; the scheme is SNOMED CT (`SCT`) throughout."""

    value: str
    meaning: str


ANATOMICAL_STRUCTURE = Code("123037004", "Anatomical Structure")
MORPHOLOGICALLY_ALTERED_STRUCTURE = Code("49755003", "Morphologically Altered Structure")
NEOPLASM = Code("108369006", "Neoplasm")
CYST = Code("367643001", "Cyst")
RIGHT = Code("24028007", "Right")
LEFT = Code("7771000", "Left")


@dataclass(frozen=True)
class Label:
    """One output channel of the model.

    `index` is 1-based, as in the paper's table; `prompt` is the [CLS] text of the published embeddings.
    `anatomic_region` is the site of a lesion and is absent for an organ, whose `type` already names it.
    `hosts` names the organs a lesion may lie in, the likeliest first.
    """

    index: int
    name: str
    display_name: str
    prompt: str
    kind: LabelKind
    color: tuple[int, int, int]
    category: Code
    type: Code
    laterality: Code | None = None
    anatomic_region: Code | None = None
    hosts: tuple[str, ...] = ()

    @property
    def channel(self) -> int:
        """Zero-based position on the model's output axis."""
        return self.index - 1


def _organ(
    index: int,
    name: str,
    prompt: str,
    display_name: str,
    code: Code,
    color: tuple[int, int, int],
    laterality: Code | None = None,
) -> Label:
    return Label(index, name, display_name, prompt, LabelKind.ORGAN, color, ANATOMICAL_STRUCTURE, code, laterality)


def _lesion(
    index: int,
    name: str,
    prompt: str,
    display_name: str,
    kind: LabelKind,
    color: tuple[int, int, int],
    region: Code,
    hosts: tuple[str, ...],
) -> Label:
    return Label(
        index,
        name,
        display_name,
        prompt,
        kind,
        color,
        MORPHOLOGICALLY_ALTERED_STRUCTURE,
        CYST if kind is LabelKind.CYST else NEOPLASM,
        anatomic_region=region,
        hosts=hosts,
    )


_KIDNEY = Code("64033007", "Kidney")
_ADRENAL = Code("23451007", "Adrenal gland")
_LUNG = Code("39607008", "Lung")
_FEMUR_HEAD = Code("2812003", "Head of femur")
_LIVER = Code("10200004", "Liver")
_PANCREAS = Code("15776009", "Pancreas")
_COLON = Code("71854001", "Colon")
_HEPATIC_VEIN = Code("8993003", "Hepatic vein")
_KIDNEYS = ("kidney_right", "kidney_left")
_TUMOR, _CYST = LabelKind.TUMOR, LabelKind.CYST

LABELS: tuple[Label, ...] = (
    _organ(1, "spleen", "Spleen", "Spleen", Code("78961009", "Spleen"), (157, 108, 162)),
    _organ(2, "kidney_right", "Right Kidney", "Right kidney", _KIDNEY, (185, 102, 83), RIGHT),
    _organ(3, "kidney_left", "Left Kidney", "Left kidney", _KIDNEY, (225, 130, 100), LEFT),
    _organ(4, "gallbladder", "Gall Bladder", "Gallbladder", Code("28231008", "Gallbladder"), (139, 190, 60)),
    _organ(5, "esophagus", "Esophagus", "Esophagus", Code("32849002", "Esophagus"), (211, 171, 143)),
    _organ(6, "liver", "Liver", "Liver", _LIVER, (221, 130, 101)),
    _organ(7, "stomach", "Stomach", "Stomach", Code("69695003", "Stomach"), (216, 132, 205)),
    _organ(8, "aorta", "Aorta", "Aorta", Code("15825003", "Aorta"), (224, 60, 50)),
    _organ(
        9,
        "inferior_vena_cava",
        "Postcava",
        "Inferior vena cava",
        Code("64131007", "Inferior vena cava"),
        (0, 122, 204),
    ),
    _organ(
        10,
        "portal_and_splenic_vein",
        "Portal Vein and Splenic Vein",
        "Portal and splenic vein",
        Code("32764006", "Portal vein"),
        (0, 176, 200),
    ),
    _organ(11, "pancreas", "Pancreas", "Pancreas", _PANCREAS, (249, 196, 80)),
    _organ(
        12,
        "adrenal_gland_right",
        "Right Adrenal Gland",
        "Right adrenal gland",
        _ADRENAL,
        (244, 186, 150),
        RIGHT,
    ),
    _organ(13, "adrenal_gland_left", "Left Adrenal Gland", "Left adrenal gland", _ADRENAL, (255, 214, 170), LEFT),
    _organ(14, "duodenum", "Duodenum", "Duodenum", Code("38848004", "Duodenum"), (255, 253, 229)),
    _organ(15, "hepatic_vessel", "Hepatic Vessel", "Hepatic vessels", _HEPATIC_VEIN, (60, 90, 220)),
    _organ(16, "lung_right", "Right Lung", "Right lung", _LUNG, (150, 200, 235), RIGHT),
    _organ(17, "lung_left", "Left Lung", "Left lung", _LUNG, (110, 170, 215), LEFT),
    _organ(18, "colon", "Colon", "Colon", _COLON, (204, 168, 143)),
    _organ(
        19,
        "small_intestine",
        "Intestine",
        "Small intestine",
        Code("30315005", "Small intestine"),
        (205, 167, 220),
    ),
    _organ(20, "rectum", "Rectum", "Rectum", Code("34402009", "Rectum"), (170, 110, 70)),
    _organ(
        21,
        "urinary_bladder",
        "Bladder",
        "Urinary bladder",
        Code("89837001", "Urinary bladder"),
        (222, 220, 70),
    ),
    _organ(22, "prostate", "Prostate", "Prostate", Code("41216001", "Prostate"), (230, 158, 140)),
    _organ(23, "femur_head_left", "Left Head of Femur", "Left head of femur", _FEMUR_HEAD, (255, 238, 170), LEFT),
    _organ(
        24,
        "femur_head_right",
        "Right Head of Femur",
        "Right head of femur",
        _FEMUR_HEAD,
        (240, 220, 130),
        RIGHT,
    ),
    _organ(25, "celiac_trunk", "Celiac Trunk", "Celiac trunk", Code("57850000", "Celiac artery"), (255, 110, 60)),
    _lesion(26, "kidney_tumor", "Kidney Tumor", "Kidney tumor", _TUMOR, (120, 20, 20), _KIDNEY, _KIDNEYS),
    # Hosts beyond the vessel: these tumours grow in the liver around its vessels (MSD Task08).
    _lesion(27, "liver_tumor", "Liver Tumor", "Liver tumor", _TUMOR, (40, 160, 60), _LIVER, ("liver",)),
    _lesion(
        28,
        "pancreas_tumor",
        "Pancreas Tumor",
        "Pancreas tumor",
        _TUMOR,
        (200, 30, 120),
        _PANCREAS,
        ("pancreas",),
    ),
    _lesion(
        29,
        "hepatic_vessel_tumor",
        "Hepatic Vessel Tumor",
        "Hepatic vessel tumor",
        _TUMOR,
        (30, 220, 130),
        _HEPATIC_VEIN,
        ("liver", "hepatic_vessel"),
    ),
    _lesion(
        30,
        "lung_tumor",
        "Lung Tumor",
        "Lung tumor",
        _TUMOR,
        (250, 60, 220),
        _LUNG,
        ("lung_right", "lung_left"),
    ),
    _lesion(31, "colon_tumor", "Colon Tumor", "Colon tumor", _TUMOR, (140, 70, 10), _COLON, ("colon",)),
    _lesion(32, "kidney_cyst", "Kidney Cyst", "Kidney cyst", _CYST, (60, 200, 255), _KIDNEY, _KIDNEYS),
)

BY_NAME: dict[str, Label] = {label.name: label for label in LABELS}
ORGANS: tuple[Label, ...] = tuple(label for label in LABELS if label.kind is LabelKind.ORGAN)
LESIONS: tuple[Label, ...] = tuple(label for label in LABELS if label.kind is not LabelKind.ORGAN)

#: Names for both sides at once: (right, left).
PAIRS: dict[str, tuple[str, str]] = {
    "kidneys": ("kidney_right", "kidney_left"),
    "lungs": ("lung_right", "lung_left"),
    "adrenal_glands": ("adrenal_gland_right", "adrenal_gland_left"),
    "femur_heads": ("femur_head_right", "femur_head_left"),
}


def channels(names: Iterable[str]) -> list[int]:
    """Zero-based channels of the named labels, in the order given. Raises KeyError for an unknown name."""
    return [BY_NAME[name].channel for name in names]
