"""A miniature assembly: phantoms cut into five partially labelled datasets, in the layouts they are downloaded in."""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.labels import BY_NAME
from training.phantom.phantom import TRUNK, Phantom, draw_phantom
from training.phantom.write import write_dicom

SPACING_MM = (6.0, 6.0, 6.0)


@cache
def small_phantom(seed: int, spacing_mm: tuple[float, float, float] = SPACING_MM) -> Phantom:
    """A whole trunk on a coarse grid."""
    return draw_phantom(seed, spacing_mm=spacing_mm, field_of_view=TRUNK)


def mask_of(bits: NDArray[np.uint32], *names: str) -> NDArray[np.bool_]:
    """Where any of the named labels is."""
    return (bits & np.uint32(sum(1 << BY_NAME[name].channel for name in names))) != 0


def label_map(bits: NDArray[np.uint32], *painted: tuple[int, tuple[str, ...]]) -> NDArray[np.uint8]:
    """A dataset's label map: each value where any of its labels is, later ones over earlier ones."""
    values = np.zeros(bits.shape, np.uint8)
    for value, names in painted:
        values[mask_of(bits, *names)] = value
    return values


def save(array: NDArray[np.generic], affine: NDArray[np.float64], path: Path) -> None:
    """A NIfTI file, its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


KIDNEYS = ("kidney_right", "kidney_left")
LUNGS = ("lung_right", "lung_left")


def write_lits(folder: Path, seeds: Iterable[int], phantom: Callable[[int], Phantom] = small_phantom) -> Path:
    """volume-N.nii and segmentation-N.nii; axes reversed, as NIfTI files often are."""
    for number, seed in enumerate(seeds):
        drawn = phantom(seed)
        values = label_map(drawn.labels, (1, ("liver",)), (2, ("liver_tumor", "hepatic_vessel_tumor")))
        flipped = drawn.affine @ np.array([[-1, 0, 0, drawn.hu.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        save(drawn.hu[::-1], flipped, folder / "Training Batch 1" / f"volume-{number}.nii")
        save(values[::-1], flipped, folder / "Training Batch 1" / f"segmentation-{number}.nii")
    return folder


def write_kits21(folder: Path, seeds: Iterable[int], phantom: Callable[[int], Phantom] = small_phantom) -> Path:
    """case_00000/imaging.nii.gz; both kidneys are one label."""
    for number, seed in enumerate(seeds):
        drawn = phantom(seed)
        values = label_map(drawn.labels, (1, KIDNEYS), (2, ("kidney_tumor",)), (3, ("kidney_cyst",)))
        case = folder / "kits21" / "data" / f"case_{number:05d}"
        save(drawn.hu, drawn.affine, case / "imaging.nii.gz")
        save(values, drawn.affine, case / "aggregated_OR_seg.nii.gz")
    return folder


def write_msd_spleen(folder: Path, seeds: Iterable[int], phantom: Callable[[int], Phantom] = small_phantom) -> Path:
    """imagesTr/spleen_N.nii.gz, with dataset.json and the hidden files of another operating system."""
    task = folder / "Task09_Spleen"
    for number, seed in enumerate(seeds):
        drawn = phantom(seed)
        save(drawn.hu, drawn.affine, task / "imagesTr" / f"spleen_{number}.nii.gz")
        save(label_map(drawn.labels, (1, ("spleen",))), drawn.affine, task / "labelsTr" / f"spleen_{number}.nii.gz")
        (task / "imagesTr" / f"._spleen_{number}.nii.gz").write_bytes(b"not an image")
    (task / "dataset.json").write_text('{"labels": {"0": "background", "1": "spleen"}}')
    return folder


def write_ct_org(folder: Path, seeds: Iterable[int], phantom: Callable[[int], Phantom] = small_phantom) -> Path:
    """volume-N.nii.gz and labels-N.nii.gz, with bones that we do not use."""
    for number, seed in enumerate(seeds):
        drawn = phantom(seed)
        values = label_map(drawn.labels, (1, ("liver",)), (2, ("urinary_bladder",)), (3, LUNGS), (4, KIDNEYS))
        values[(values == 0) & (drawn.hu > 500)] = 5
        save(drawn.hu.astype(np.float32), drawn.affine, folder / f"volume-{number}.nii.gz")
        save(values, drawn.affine, folder / f"labels-{number}.nii.gz")
    return folder


def write_chaos(folder: Path, seeds: Iterable[int], phantom: Callable[[int], Phantom] = small_phantom) -> Path:
    """CT/N/DICOM_anon/*.dcm and CT/N/Ground/*.png, one file per slice."""
    for number, seed in enumerate(seeds, 1):
        drawn = phantom(seed)
        case = folder / "Train_Sets" / "CT" / str(number)
        write_dicom(drawn, case / "DICOM_anon")
        (case / "Ground").mkdir()
        liver = mask_of(drawn.labels, "liver")[::-1, ::-1]  # pixel rows and columns of DICOM: LPS
        for index in range(liver.shape[2]):
            picture = Image.fromarray(liver[:, :, index].T.astype(np.uint8) * 255)
            picture.save(case / "Ground" / f"liver_GT_{index:03d}.png")
    return folder


WRITERS = {
    "lits": write_lits,
    "kits21": write_kits21,
    "msd_spleen": write_msd_spleen,
    "ct_org": write_ct_org,
    "chaos": write_chaos,
}
