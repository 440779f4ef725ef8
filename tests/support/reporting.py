"""Small scans with masks put in by hand: a volume, its masks and a provenance, for tests of the reporting package."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry
from service.imaging.volume import SourceFormat, Volume
from service.inference.grid import full_box
from service.inference.manifest import Code, Label, LabelKind
from service.inference.masks import LabelMask, Masks
from service.reporting.schema import BundleReference, Provenance

_CATEGORY = Code(scheme="SCT", value="123037004", meaning="Anatomical Structure")
_ALTERED = Code(scheme="SCT", value="49755003", meaning="Morphologically Altered Structure")
_RIGHT = Code(scheme="SCT", value="24028007", meaning="Right")
_LEFT = Code(scheme="SCT", value="7771000", meaning="Left")


def organ(index: int, name: str, color: tuple[int, int, int], type_code: str, side: Code | None = None) -> Label:
    return Label(
        index=index,
        name=name,
        display_name=name.replace("_", " ").capitalize(),
        kind=LabelKind.ORGAN,
        color=color,
        category=_CATEGORY,
        type=Code(scheme="SCT", value=type_code, meaning=name),
        laterality=side,
    )


def lesion(index: int, name: str, color: tuple[int, int, int], hosts: tuple[str, ...]) -> Label:
    return Label(
        index=index,
        name=name,
        display_name=name.replace("_", " ").capitalize(),
        kind=LabelKind.TUMOR,
        color=color,
        hosts=hosts,
        category=_ALTERED,
        type=Code(scheme="SCT", value="108369006", meaning="Neoplasm"),
        anatomic_region=Code(scheme="SCT", value="10200004", meaning="Liver"),
    )


#: The order differs from the index on purpose: a bit is not an index.
LABELS = (
    organ(6, "liver", (221, 130, 101), "10200004"),
    organ(2, "kidney_right", (185, 102, 83), "64033007", _RIGHT),
    organ(3, "kidney_left", (90, 130, 200), "64033007", _LEFT),
    organ(15, "vessel", (60, 90, 220), "8993003"),
    lesion(27, "liver_tumor", (40, 160, 60), ("liver",)),
    lesion(26, "kidney_tumor", (200, 40, 160), ("kidney_right", "kidney_left")),
)

PROVENANCE = Provenance(
    bundle=BundleReference(name="viscera-test", version="1.2.3", sha256="a" * 64),
    software_version="0.1.0",
    engine="onnxruntime",
    precision="fp32",
    settings={"overlap": 0.5},
    input_sha256="b" * 64,
    mask_sha256="c" * 64,
)


def scan(
    hu: NDArray[np.int16],
    painted: Mapping[str, NDArray[np.bool_]],
    affine: NDArray[np.float64] | None = None,
    labels: tuple[Label, ...] = LABELS,
    probability: float = 0.8,
    sop_instance_uids: tuple[str, ...] | None = None,
) -> tuple[Volume, Masks]:
    """A volume and its masks; the affine defaults to RAS with voxels of 1 mm."""
    geometry = Geometry(hu.shape, np.eye(4) if affine is None else affine)
    masks = tuple(label_mask(painted.get(label.name, np.zeros(hu.shape, np.bool_))) for label in labels)
    source = SourceFormat.NIFTI if sop_instance_uids is None else SourceFormat.DICOM
    stored = {
        label.name: np.full(painted[label.name].sum(), round(255 * probability), dtype=np.uint8)
        for label in labels
        if label.kind.is_lesion and label.name in painted
    }
    volume = Volume(hu, geometry, source, "b" * 64, sop_instance_uids)
    return volume, Masks(labels, masks, geometry, stored)


def label_mask(whole: NDArray[np.bool_]) -> LabelMask:
    """A label's mask from a volume of it."""
    return LabelMask.of(full_box(whole.shape), whole)


def box_mask(shape: tuple[int, int, int], *spans: tuple[int, int]) -> NDArray[np.bool_]:
    """A block: (start, stop) along i, j, k."""
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(slice(*span) for span in spans)] = True
    return mask


def abdomen(spacing_mm: tuple[float, float, float] = (2.5, 2.5, 4.0)) -> tuple[Volume, Masks]:
    """An oval body in RAS, centred at 0: a liver with a vessel and two tumours on the right, and two kidneys."""
    size = tuple(round(mm / step) for mm, step in zip((340.0, 260.0, 240.0), spacing_mm, strict=True))
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -0.5 * (np.array(size) - 1) * spacing_mm
    x, y, z = np.moveaxis(Geometry(size, affine).to_ras_mm(np.moveaxis(np.indices(size), 0, -1)), -1, 0)

    def ball(center: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.bool_]:
        scaled = ((x - center[0]) / radii[0], (y - center[1]) / radii[1], (z - center[2]) / radii[2])
        return np.square(scaled).sum(axis=0) < 1.0

    liver = ball((75, 10, 40), (70, 75, 65))
    painted = {
        "liver": liver,
        "kidney_right": ball((60, -60, -40), (28, 24, 50)) & ~liver,
        "kidney_left": ball((-60, -60, -30), (28, 24, 50)),
        "vessel": liver & (np.hypot(x - 60, y - 20) < 7),
        "liver_tumor": ball((95.7, 31.2, 41.1), (22, 16, 18)) | ball((61.3, -20.9, 36.7), (10, 8, 9)),
    }
    hu = np.where((x / 150) ** 2 + (y / 105) ** 2 < 1.0, -90, -1000).astype(np.int16)
    hu[(x / 135) ** 2 + (y / 90) ** 2 < 1.0] = 30
    for name, value in (
        ("liver", 110),
        ("kidney_right", 180),
        ("kidney_left", 180),
        ("vessel", 160),
        ("liver_tumor", 50),
    ):
        hu[painted[name]] = value
    noise = np.random.default_rng(3).normal(0, 8, hu.shape).astype(np.int16)
    return scan(hu + noise, painted, affine)


def reoriented(
    volume: Volume, masks: Masks, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> tuple[Volume, Masks]:
    """The same anatomy in the same place, stored with permuted and reversed voxel axes."""
    index = np.eye(4)[:, [*axes, 3]]
    shape = tuple(volume.geometry.shape[axis] for axis in axes)
    cut = tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)
    for axis, flip in enumerate(flips):
        if flip:
            index = index @ _reversal(axis, shape[axis])
    geometry = Geometry(shape, volume.geometry.affine @ index)

    def moved(array: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(array.transpose(axes)[cut])

    of_labels = tuple(label_mask(moved(masks.mask(label.name))) for label in masks.labels)
    stored = {}
    for name, of_voxels in masks.lesion_probability.items():
        mask = masks.mask(name)
        probability = np.zeros(mask.shape, np.uint8)
        probability[mask] = of_voxels
        stored[name] = moved(probability)[moved(mask)]
    there = Masks(masks.labels, of_labels, geometry, stored)
    return replace(volume, hu=moved(volume.hu), geometry=geometry), there


def _reversal(axis: int, size: int) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[axis, axis] = -1.0
    matrix[axis, 3] = size - 1
    return matrix
