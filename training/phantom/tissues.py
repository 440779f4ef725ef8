"""Tissue classes of the phantom and the HU that each one has in a phase of enhancement.

The typical values are textbook ones, checked against the real scan that the phantom was compared with. Each
patient draws its own values around them, wider than any one hospital would show.
"""

from enum import IntEnum, StrEnum, auto

import numpy as np
from numpy.typing import NDArray


class Phase(StrEnum):
    """When the scan was taken, counted from the injection of iodinated contrast medium."""

    NATIVE = "native"  #: no contrast medium
    ARTERIAL = "arterial"  #: about 35 s: arteries and renal cortex are bright
    PORTAL = "portal"  #: about 70 s: veins and liver are bright


def draw_phase(rng: np.random.Generator) -> Phase:
    """A phase as often as abdominal scans are taken in it."""
    return Phase(str(rng.choice([Phase.NATIVE, Phase.ARTERIAL, Phase.PORTAL], p=[0.25, 0.2, 0.55])))


class Tissue(IntEnum):
    """What a voxel is made of; the value is the voxel's number in `Raster.tissue`."""

    AIR = 0
    LUNG = auto()
    LUNG_VESSEL = auto()
    AIRWAY_GAS = auto()
    AIRWAY_WALL = auto()
    SUBCUTANEOUS_FAT = auto()
    VISCERAL_FAT = auto()
    PERIRENAL_FAT = auto()
    INTERMUSCULAR_FAT = auto()
    SKIN = auto()
    MUSCLE = auto()
    DIAPHRAGM = auto()
    CORTICAL_BONE = auto()
    MARROW = auto()
    RIB_MARROW = auto()
    CARTILAGE = auto()
    DISC = auto()
    SPINAL_CORD = auto()
    MEDIASTINUM = auto()
    THYMUS = auto()
    MYOCARDIUM = auto()
    LEFT_HEART = auto()
    RIGHT_HEART = auto()
    PULMONARY_ARTERY = auto()
    AORTA = auto()
    ARTERY = auto()
    CALCIFICATION = auto()
    VENA_CAVA = auto()
    SUPERIOR_VENA_CAVA = auto()
    ILIAC_VEIN = auto()
    PORTAL_VEIN = auto()
    HEPATIC_PORTAL = auto()
    HEPATIC_VEIN = auto()
    ESOPHAGUS = auto()
    ESOPHAGUS_LUMEN = auto()
    LIVER = auto()
    GALLBLADDER_WALL = auto()
    BILE = auto()
    GALLSTONE = auto()
    SPLEEN = auto()
    RENAL_CORTEX = auto()
    RENAL_MEDULLA = auto()
    RENAL_PELVIS = auto()
    RENAL_SINUS_FAT = auto()
    ADRENAL = auto()
    PANCREAS = auto()
    STOMACH_WALL = auto()
    STOMACH_FLUID = auto()
    STOMACH_FOOD = auto()
    STOMACH_GAS = auto()
    DUODENUM_WALL = auto()
    DUODENUM_FLUID = auto()
    SMALL_BOWEL_WALL = auto()
    SMALL_BOWEL_FLUID = auto()
    BOWEL_GAS = auto()
    COLON_WALL = auto()
    COLON_FLUID = auto()
    STOOL = auto()
    STOOL_GAS_MIX = auto()
    RECTUM_WALL = auto()
    BLADDER_WALL = auto()
    URINE = auto()
    PROSTATE = auto()
    SEMINAL_VESICLE = auto()
    LIVER_TUMOR = auto()
    LIVER_TUMOR_RIM = auto()
    HEPATIC_VESSEL_TUMOR = auto()
    HEPATIC_VESSEL_TUMOR_CORE = auto()
    PANCREAS_TUMOR = auto()
    KIDNEY_TUMOR = auto()
    KIDNEY_TUMOR_NECROSIS = auto()
    KIDNEY_CYST = auto()
    LUNG_TUMOR = auto()
    COLON_TUMOR = auto()
    TABLE_SHELL = auto()
    TABLE_FOAM = auto()
    METAL = auto()
    CLOTHING = auto()
    MESENTERIC_VESSEL = auto()
    GENITAL = auto()


#: Mean HU in the native, arterial and portal phase, and the standard deviation between patients.
_HU: dict[Tissue, tuple[float, float, float, float]] = {
    Tissue.AIR: (-1000, -1000, -1000, 3),
    Tissue.LUNG: (-850, -845, -840, 35),
    Tissue.LUNG_VESSEL: (30, 110, 90, 25),
    Tissue.AIRWAY_GAS: (-990, -990, -990, 8),
    Tissue.AIRWAY_WALL: (20, 35, 35, 15),
    Tissue.SUBCUTANEOUS_FAT: (-105, -105, -105, 6),
    Tissue.VISCERAL_FAT: (-98, -98, -97, 8),
    Tissue.PERIRENAL_FAT: (-98, -98, -97, 8),
    Tissue.INTERMUSCULAR_FAT: (-75, -75, -73, 14),
    Tissue.SKIN: (0, 5, 10, 20),
    Tissue.MUSCLE: (50, 54, 60, 8),
    Tissue.DIAPHRAGM: (45, 52, 58, 8),
    Tissue.CORTICAL_BONE: (620, 620, 620, 150),
    Tissue.MARROW: (170, 175, 180, 55),
    Tissue.RIB_MARROW: (220, 220, 225, 60),
    Tissue.CARTILAGE: (100, 100, 102, 22),
    Tissue.DISC: (80, 82, 85, 12),
    Tissue.SPINAL_CORD: (22, 24, 26, 8),
    Tissue.MEDIASTINUM: (-80, -78, -76, 15),
    Tissue.THYMUS: (-20, -15, -12, 35),
    Tissue.MYOCARDIUM: (45, 95, 105, 14),
    Tissue.LEFT_HEART: (42, 290, 150, 24),
    Tissue.RIGHT_HEART: (42, 240, 148, 30),
    Tissue.PULMONARY_ARTERY: (42, 260, 150, 35),
    Tissue.AORTA: (42, 300, 155, 22),
    Tissue.ARTERY: (42, 285, 150, 22),
    Tissue.CALCIFICATION: (550, 600, 560, 120),
    Tissue.VENA_CAVA: (40, 85, 145, 20),
    Tissue.SUPERIOR_VENA_CAVA: (42, 320, 150, 80),
    Tissue.ILIAC_VEIN: (40, 60, 115, 25),
    Tissue.PORTAL_VEIN: (41, 100, 165, 20),
    Tissue.HEPATIC_PORTAL: (38, 100, 162, 14),
    Tissue.HEPATIC_VEIN: (38, 46, 158, 8),  # at 35 s the contrast medium has not come back through the liver
    Tissue.ESOPHAGUS: (38, 52, 62, 8),
    Tissue.ESOPHAGUS_LUMEN: (-300, -300, -300, 350),
    Tissue.LIVER: (55, 70, 108, 13),
    Tissue.GALLBLADDER_WALL: (35, 50, 65, 10),
    Tissue.BILE: (9, 9, 10, 7),
    Tissue.GALLSTONE: (180, 180, 180, 90),
    Tissue.SPLEEN: (48, 110, 118, 10),
    Tissue.RENAL_CORTEX: (33, 180, 180, 16),
    Tissue.RENAL_MEDULLA: (31, 75, 150, 14),
    Tissue.RENAL_PELVIS: (8, 15, 35, 14),
    Tissue.RENAL_SINUS_FAT: (-70, -70, -70, 20),
    Tissue.ADRENAL: (28, 65, 70, 12),
    Tissue.PANCREAS: (38, 95, 92, 12),
    Tissue.STOMACH_WALL: (40, 75, 82, 12),
    Tissue.STOMACH_FLUID: (15, 15, 15, 12),
    Tissue.STOMACH_FOOD: (45, 45, 45, 25),
    Tissue.STOMACH_GAS: (-980, -980, -980, 15),
    Tissue.DUODENUM_WALL: (38, 75, 82, 12),
    Tissue.DUODENUM_FLUID: (20, 22, 25, 12),
    Tissue.SMALL_BOWEL_WALL: (40, 85, 92, 14),
    Tissue.SMALL_BOWEL_FLUID: (22, 25, 28, 14),
    Tissue.BOWEL_GAS: (-960, -960, -960, 25),
    Tissue.COLON_WALL: (40, 65, 78, 12),
    Tissue.COLON_FLUID: (20, 20, 22, 15),
    Tissue.STOOL: (25, 25, 25, 35),
    Tissue.STOOL_GAS_MIX: (-220, -220, -220, 130),
    Tissue.RECTUM_WALL: (40, 58, 72, 12),
    Tissue.BLADDER_WALL: (38, 48, 58, 10),
    Tissue.URINE: (6, 6, 8, 5),
    Tissue.PROSTATE: (40, 62, 80, 14),
    Tissue.SEMINAL_VESICLE: (30, 38, 48, 10),
    Tissue.LIVER_TUMOR: (0, 0, 0, 0),
    Tissue.LIVER_TUMOR_RIM: (0, 0, 0, 0),
    Tissue.HEPATIC_VESSEL_TUMOR: (0, 0, 0, 0),
    Tissue.HEPATIC_VESSEL_TUMOR_CORE: (0, 0, 0, 0),
    Tissue.PANCREAS_TUMOR: (0, 0, 0, 0),
    Tissue.KIDNEY_TUMOR: (50, 105, 95, 16),
    Tissue.KIDNEY_TUMOR_NECROSIS: (22, 32, 35, 10),
    Tissue.KIDNEY_CYST: (7, 7, 8, 4),
    Tissue.LUNG_TUMOR: (35, 60, 62, 14),
    Tissue.COLON_TUMOR: (45, 95, 100, 12),
    Tissue.TABLE_SHELL: (-150, -150, -150, 120),
    Tissue.TABLE_FOAM: (-880, -880, -880, 40),
    Tissue.METAL: (2800, 2800, 2800, 150),
    Tissue.CLOTHING: (-700, -700, -700, 100),
    Tissue.MESENTERIC_VESSEL: (35, 85, 120, 20),
    Tissue.GENITAL: (35, 40, 45, 8),
}

_COLUMN = {Phase.NATIVE: 0, Phase.ARTERIAL: 1, Phase.PORTAL: 2}
_BLOOD = (
    Tissue.LEFT_HEART, Tissue.RIGHT_HEART, Tissue.PULMONARY_ARTERY, Tissue.AORTA, Tissue.ARTERY,
    Tissue.VENA_CAVA, Tissue.SUPERIOR_VENA_CAVA, Tissue.ILIAC_VEIN, Tissue.PORTAL_VEIN,
    Tissue.HEPATIC_PORTAL, Tissue.HEPATIC_VEIN,
)  # fmt: skip
_ORAL = (Tissue.STOMACH_FLUID, Tissue.DUODENUM_FLUID, Tissue.SMALL_BOWEL_FLUID)
#: How strongly a tissue is mottled (HU standard deviation of the slow texture).
TEXTURE_HU: dict[Tissue, float] = {
    Tissue.LUNG: 22, Tissue.LIVER: 4, Tissue.SPLEEN: 4, Tissue.PANCREAS: 12, Tissue.MUSCLE: 9, Tissue.MARROW: 38,
    Tissue.RIB_MARROW: 40, Tissue.CORTICAL_BONE: 90, Tissue.VISCERAL_FAT: 9, Tissue.SUBCUTANEOUS_FAT: 5,
    Tissue.STOOL: 60, Tissue.STOOL_GAS_MIX: 170, Tissue.STOMACH_FOOD: 35, Tissue.KIDNEY_TUMOR: 16,
    Tissue.LIVER_TUMOR: 8, Tissue.HEPATIC_VESSEL_TUMOR: 14, Tissue.COLON_TUMOR: 9, Tissue.LUNG_TUMOR: 10,
    Tissue.PROSTATE: 9, Tissue.RENAL_MEDULLA: 9, Tissue.RENAL_CORTEX: 7, Tissue.SMALL_BOWEL_FLUID: 14,
    Tissue.MEDIASTINUM: 12, Tissue.INTERMUSCULAR_FAT: 20, Tissue.PANCREAS_TUMOR: 8, Tissue.MYOCARDIUM: 6,
    Tissue.RIGHT_HEART: 12, Tissue.VENA_CAVA: 8,
}  # fmt: skip


def sample_tissue_hu(rng: np.random.Generator, phase: Phase) -> NDArray[np.float32]:
    """Mean HU of each tissue in one patient: [256], indexed by `Tissue`; numbers without a tissue are 0."""
    hu = np.zeros(256, np.float32)
    for tissue, row in _HU.items():
        hu[tissue] = row[_COLUMN[phase]] + row[3] * np.clip(rng.standard_normal(), -2.2, 2.2)
    _enhance(hu, rng, phase)
    _shift_liver(hu, rng, phase)
    _oral_contrast(hu, rng)
    _lesions(hu, rng, phase)
    hu[Tissue.DIAPHRAGM] = hu[Tissue.MUSCLE] - 3
    hu[Tissue.PERIRENAL_FAT] = hu[Tissue.VISCERAL_FAT]
    return hu


def enhancement_hu(tissue: Tissue) -> float:
    """How much brighter a tissue is in the portal venous phase than without contrast medium."""
    row = _HU[tissue]
    return float(row[_COLUMN[Phase.PORTAL]] - row[_COLUMN[Phase.NATIVE]])


def _enhance(hu: NDArray[np.float32], rng: np.random.Generator, phase: Phase) -> None:
    """One dose for the whole patient: all blood and organs enhance more, or less, together; blood stays one blood."""
    blood = float(rng.normal(42, 5))
    organs = (Tissue.SPLEEN, Tissue.RENAL_CORTEX, Tissue.RENAL_MEDULLA, Tissue.PANCREAS, Tissue.MYOCARDIUM)
    if phase is Phase.NATIVE:
        for tissue in _BLOOD:
            hu[tissue] = blood + rng.normal(0, 1.5)
        # Unenhanced renal parenchyma is uniform and varies little between patients.
        hu[Tissue.RENAL_CORTEX] = np.clip(rng.normal(33, 4.5), 22, 46)
        hu[Tissue.RENAL_MEDULLA] = hu[Tissue.RENAL_CORTEX] + rng.normal(-1.5, 1.5)
        return
    dose = float(rng.uniform(0.65, 1.25))
    for tissue in (*_BLOOD, *organs):
        hu[tissue] = blood + (hu[tissue] - blood) * dose
    hu[Tissue.ARTERY] = hu[Tissue.AORTA] - 8
    hu[Tissue.ILIAC_VEIN] = min(hu[Tissue.ILIAC_VEIN], hu[Tissue.VENA_CAVA])
    if phase is Phase.PORTAL and rng.random() < 0.2:  # a late scan: contrast medium reaches urine
        hu[Tissue.RENAL_PELVIS] = rng.uniform(60, 600)
        hu[Tissue.URINE] += rng.uniform(0, 120)
        hu[Tissue.RENAL_MEDULLA] = hu[Tissue.RENAL_CORTEX] - rng.uniform(0, 15)


def _shift_liver(hu: NDArray[np.float32], rng: np.random.Generator, phase: Phase) -> None:
    """Fatty livers, one in seven, are darker by 20 to 55 HU; hepatic vessels keep a contrast with the liver."""
    fatty = rng.random() < 0.15
    if fatty:
        hu[Tissue.LIVER] -= rng.uniform(20, 55)
    if phase is Phase.PORTAL:
        contrast = rng.uniform(25, 60)
        hu[Tissue.HEPATIC_VEIN] = hu[Tissue.LIVER] + contrast * rng.uniform(0.85, 1.1)
        hu[Tissue.HEPATIC_PORTAL] = hu[Tissue.LIVER] + contrast
        hu[Tissue.PORTAL_VEIN] = hu[Tissue.HEPATIC_PORTAL] + rng.normal(4, 4)
    elif phase is Phase.NATIVE and not fatty:
        for tissue in (Tissue.HEPATIC_VEIN, Tissue.HEPATIC_PORTAL):
            hu[tissue] = hu[Tissue.LIVER] - rng.uniform(8, 18)


def _oral_contrast(hu: NDArray[np.float32], rng: np.random.Generator) -> None:
    """One patient in five drank iodine; one in ten has it, or tagged stool, in the colon."""
    if rng.random() < 0.2:
        for tissue in _ORAL:
            hu[tissue] = rng.uniform(100, 380)
    if rng.random() < 0.1:
        for tissue in (Tissue.COLON_FLUID, Tissue.STOOL):
            hu[tissue] = rng.uniform(90, 420)


def _lesions(hu: NDArray[np.float32], rng: np.random.Generator, phase: Phase) -> None:
    """Lesions are drawn as a difference from their host, so that each one can be seen."""
    native = phase is Phase.NATIVE
    liver, pancreas = float(hu[Tissue.LIVER]), float(hu[Tissue.PANCREAS])
    hu[Tissue.LIVER_TUMOR] = max(liver - rng.uniform(28, 50 if native else 65), -5)
    if liver - hu[Tissue.LIVER_TUMOR] < 25:  # in a fatty liver a metastasis is the brighter one
        hu[Tissue.LIVER_TUMOR] = liver + rng.uniform(25, 40)
    hu[Tissue.LIVER_TUMOR_RIM] = 0.5 * (hu[Tissue.LIVER_TUMOR] + liver) + rng.uniform(0, 12)
    bright = liver + rng.uniform(28, 55)
    hu[Tissue.HEPATIC_VESSEL_TUMOR] = bright
    hu[Tissue.HEPATIC_VESSEL_TUMOR_CORE] = liver - rng.uniform(5, 30)
    hu[Tissue.PANCREAS_TUMOR] = pancreas - rng.uniform(25, 30 if native else 50)
    cortex = float(hu[Tissue.RENAL_CORTEX])
    if native:
        hu[Tissue.KIDNEY_TUMOR] = cortex + rng.choice([-1.0, 1.0]) * rng.uniform(24, 34)
    elif abs(cortex - hu[Tissue.KIDNEY_TUMOR]) < 30:
        hu[Tissue.KIDNEY_TUMOR] = cortex - rng.uniform(30, 60)
    hu[Tissue.KIDNEY_TUMOR_NECROSIS] = min(float(hu[Tissue.KIDNEY_TUMOR]) - 20, 35.0)
    hu[Tissue.KIDNEY_CYST] = min(rng.uniform(0, 15), cortex - 22.0)
    hu[Tissue.COLON_TUMOR] = max(float(hu[Tissue.COLON_TUMOR]), 40.0)
