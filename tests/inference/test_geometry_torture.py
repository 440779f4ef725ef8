"""Any scan of one phantom gives masks on the voxels that show it, whatever way the patient lay and the files were cut.

The truth of each source image is known by its SOPInstanceUID and its pixels alone, apart from all geometry; that the
geometry is right too shows in the lesion's place in the patient.
"""

import random
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from service.errors import InvalidGeometry, MissingSlices, MultiplePatients
from service.imaging.volume import Volume
from service.inference.manifest import Interpolation
from service.inference.masks import Masks
from service.inference.model import Model
from service.inference.preprocessing import preprocess
from service.inference.restoration import restore_masks
from service.inference.sliding_window import predict_windows
from service.reporting.findings import measure
from service.reporting.schema import Findings
from tests.support.dicom_series import write_ct_series
from tests.support.reading import notice_codes, read_upload
from tests.support.reporting import PROVENANCE
from tests.support.world_phantom import SHAPE, SPACING_MM, center_lps_mm, grid, hu_at, masks_at, places

Change = Callable[[list[Path]], None]
# The hand-made network answers once in 4 mm, which a ball of 15 mm shows. A mask that is one voxel off along any axis
# falls below one of these.
LEAST_DICE = {"liver": 0.95, "liver_tumor": 0.84, "bone": 0.85}


def segment(volume: Volume, model: Model, interpolation: Interpolation = Interpolation.LINEAR) -> Masks:
    manifest = model.bundle.manifest
    labels = model.bundle.labels_for(["liver", "bone", "liver_tumor"])
    logits = predict_windows(
        preprocess(volume, manifest.preprocessing), model.predictor.for_labels(labels), manifest.sliding_window
    )
    return restore_masks(logits, labels, onto=volume.geometry, mask_interpolation=interpolation)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def assert_on_the_voxels(masks: Masks, truth: dict[str, NDArray[np.bool_]]) -> None:
    for label in masks.labels:
        found = dice(masks.mask(label.name), truth[label.name])
        assert found > LEAST_DICE[label.name], f"{label.name}: Dice {found:.3f}"


def assert_in_the_patient(findings: Findings) -> None:
    (lesion,) = findings.lesions
    assert np.linalg.norm(np.array(lesion.centroid_lps_mm) - center_lps_mm("liver_tumor")) < 1.0
    assert lesion.volume_ml == pytest.approx(4 / 3 * np.pi * 0.75**3, rel=0.3)
    assert lesion.longest_axial_diameter_mm == pytest.approx(15.0, abs=3.0)


@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)), ids=str)
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_nifti_of_every_orientation(
    tmp_path: Path, tiny_model: Model, order: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    shape = tuple(SHAPE[axis] for axis in order)
    spacing_mm = tuple(SPACING_MM[axis] for axis in order)
    affine = grid(np.eye(3)[:, list(order)] * flips, spacing_mm, shape)
    hu = hu_at(places(affine, shape))
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "scan.nii")
    volume = read_upload(tmp_path / "scan.nii", tmp_path)
    np.testing.assert_array_equal(volume.hu, hu)

    masks = segment(volume, tiny_model)

    assert_on_the_voxels(masks, masks_at(places(affine, shape)))
    assert_in_the_patient(measure(volume, masks, PROVENANCE))


def turned(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> NDArray[np.float64]:
    """Directions of an axial scan (i to the left, j to the back, k up), turned by degrees about x, then y, then z."""
    directions = np.diag([-1.0, -1.0, 1.0])
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = [n for n in range(3) if n != axis]
        rotation = np.eye(3)
        rotation[a, a] = rotation[b, b] = c
        rotation[a, b], rotation[b, a] = -s, s
        directions = rotation @ directions
    return directions


def tilted(degrees: float, about: str = "x") -> NDArray[np.float64]:
    """A gantry turned by degrees about the left-right (x) or front-back (y) axis, over a table that moves straight.

    k's column is the table's way, longer than the distance along the slices' normal.
    """
    directions = turned(**{about: degrees})
    directions[:, 2] = np.array([0.0, 0.0, 1.0]) / np.cos(np.radians(degrees))
    return directions


def columns(*directions: tuple[int, int, int]) -> NDArray[np.float64]:
    return np.array(directions, dtype=float).T


GRIDS = {
    "HFS": columns((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "HFP": columns((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "FFS": columns((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "FFP": columns((-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    "HFDR": columns((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "FFDL": columns((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "sagittal": columns((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
    "coronal": columns((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "oblique 10 x": turned(x=10),
    "oblique -30 y": turned(y=-30),
    "oblique by 3 angles": turned(x=20, y=-12, z=35),
    **{f"tilt {degrees:+d}": tilted(degrees) for degrees in (5, -10, 15, -20, 25)},
    "tilt 14 sideways": tilted(14, "y"),
    "tilt 12 feet first": tilted(12) @ np.diag([-1.0, 1.0, -1.0]),
    "tilt 12, head turned": turned(z=20) @ np.linalg.inv(turned()) @ tilted(12),
}


def write_phantom(folder: Path, directions: NDArray[np.float64], **options: object) -> dict[str, NDArray[np.bool_]]:
    """A series of the phantom; the truth by image, as {uid: mask} would be, in the order of writing."""
    affine = grid(directions)
    write_ct_series(folder, hu_at(places(affine, SHAPE)), affine, **options)
    return masks_at(places(affine, SHAPE))


def by_uid(volume: Volume, truth: dict[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.bool_]]:
    """The truth in the order of the volume's slices; an interpolated slice has none and stays empty."""
    written = {generate_uid(entropy_srcs=["instance", str(k)]): k for k in range(SHAPE[2])}
    assert volume.sop_instance_uids is not None
    order = [written[uid] if uid else None for uid in volume.sop_instance_uids]
    return {
        name: np.stack([np.zeros_like(mask[..., 0]) if k is None else mask[..., k] for k in order], axis=-1)
        for name, mask in truth.items()
    }


@pytest.mark.parametrize("name", GRIDS)
def test_dicom_of_every_position(tmp_path: Path, tiny_model: Model, name: str) -> None:
    position = name if name in ("HFP", "FFS", "FFP", "HFDR", "FFDL") else "HFS"
    truth = write_phantom(tmp_path / "study", GRIDS[name], PatientPosition=position)
    volume = read_upload(tmp_path / "study", tmp_path)
    assert ("gantry-tilt" in notice_codes(volume)) == name.startswith("tilt")

    masks = segment(volume, tiny_model)

    assert_on_the_voxels(masks, by_uid(volume, truth))
    assert_in_the_patient(measure(volume, masks, PROVENANCE))


@pytest.mark.parametrize("interpolation", [Interpolation.LINEAR, Interpolation.NEAREST])
def test_masks_of_a_tilted_scan_by_either_interpolation(
    tmp_path: Path, tiny_model: Model, interpolation: Interpolation
) -> None:
    truth = write_phantom(tmp_path / "study", tilted(25))
    volume = read_upload(tmp_path / "study", tmp_path)
    masks = segment(volume, tiny_model, interpolation)
    for label in masks.labels:
        assert dice(masks.mask(label.name), by_uid(volume, truth)[label.name]) > 0.85


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith("tilt")])
def test_the_network_sees_a_tilted_patient_upright(tmp_path: Path, tiny_model: Model, name: str) -> None:
    """Every voxel of the model grid shows what is there in the patient: the shear is the true one, not only undone."""
    write_phantom(tmp_path / "study", GRIDS[name])
    volume = read_upload(tmp_path / "study", tmp_path)
    seen = preprocess(volume, tiny_model.bundle.manifest.preprocessing.model_copy(update={"foreground_crop": None}))
    axes = seen.grid.geometry.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, 4.0 * np.eye(3), atol=1e-6)
    hu = seen.values * 1000.0
    scanned = hu > -200  # air where no slice reaches
    truth = masks_at(places(seen.grid.geometry.affine, seen.grid.shape))
    assert dice((hu > 300) & scanned, truth["bone"]) > 0.93
    assert dice((hu > 120) & (hu < 300), truth["liver_tumor"] & ~truth["bone"]) > 0.6  # with the shell of the bone
    assert dice((hu > 0) & scanned, truth["liver"] | truth["bone"]) > 0.93
    assert scanned.mean() > 0.5


def test_nifti_of_a_sheared_grid(tmp_path: Path, tiny_model: Model) -> None:
    affine = grid(tilted(18))
    nib.save(nib.Nifti1Image(hu_at(places(affine, SHAPE)), affine), tmp_path / "scan.nii.gz")
    volume = read_upload(tmp_path / "scan.nii.gz", tmp_path)
    assert volume.notices[-1].message.startswith("The slices are tilted by 18.0 degrees.")
    assert_on_the_voxels(segment(volume, tiny_model), masks_at(places(affine, SHAPE)))


def shuffled(paths: list[Path]) -> None:
    for path, number in zip(paths, random.Random(5).sample(range(10**8), len(paths)), strict=True):
        path.rename(path.with_name(f"{number:08d}"))


def copied(paths: list[Path]) -> None:
    paths[9].with_name("again").write_bytes(paths[9].read_bytes())


def numbered_backwards(dataset: Dataset, k: int) -> None:
    dataset.InstanceNumber = SHAPE[2] - k


@pytest.mark.parametrize(
    ("directions", "options", "after", "code"),
    [
        (turned(), {}, shuffled, None),
        (turned(), {"change": numbered_backwards}, lambda paths: None, None),
        (turned() @ np.diag([1.0, 1.0, -1.0]), {}, shuffled, None),
        (
            turned(),
            {},
            lambda paths: paths[9].with_name("again").write_bytes(paths[9].read_bytes()),
            "duplicates-dropped",
        ),
        (turned(), {}, lambda paths: paths[13].unlink(), "slices-interpolated"),
        (tilted(20), {}, lambda paths: [paths[n].unlink() for n in (6, 7)], "slices-interpolated"),
    ],
    ids=["names", "numbers", "order", "copy", "gap", "tilted gap"],
)
def test_files_in_disorder(
    tmp_path: Path, tiny_model: Model, directions: NDArray[np.float64], options: dict[str, object],
    after: Change, code: str | None,
) -> None:  # fmt: skip
    truth = write_phantom(tmp_path / "study", directions, **options)
    after(sorted((tmp_path / "study").iterdir()))
    volume = read_upload(tmp_path / "study", tmp_path)
    assert volume.geometry.shape == SHAPE
    assert code is None or code in notice_codes(volume)

    masks = segment(volume, tiny_model)

    if code == "slices-interpolated":
        assert_on_the_voxels(masks, truth)  # also where no image is: the same places, filled from the neighbours
    else:
        assert_on_the_voxels(masks, by_uid(volume, truth))
    assert_in_the_patient(measure(volume, masks, PROVENANCE))


def test_pixels_that_are_not_square(tmp_path: Path, tiny_model: Model) -> None:
    shape, spacing_mm = (54, 32, 28), (1.5, 2.5, 3.0)
    affine = grid(turned(x=8), spacing_mm, shape)
    write_ct_series(tmp_path / "study", hu_at(places(affine, shape)), affine)
    volume = read_upload(tmp_path / "study", tmp_path)
    assert volume.geometry.spacing_mm == pytest.approx(spacing_mm)
    assert_on_the_voxels(segment(volume, tiny_model), masks_at(places(affine, shape)))


def test_mixed_orientations_in_one_series(tmp_path: Path, tiny_model: Model) -> None:
    """A coronal reformat under the same SeriesInstanceUID is a stack of its own, and the axial one is taken."""
    truth = write_phantom(tmp_path / "study", turned())
    write_phantom(
        tmp_path / "study", GRIDS["coronal"], name="reformat", SOPInstanceUID=lambda k: f"1.2.{k}",
        ImageType=["DERIVED", "SECONDARY", "MPR"],
    )  # fmt: skip
    volume = read_upload(tmp_path / "study", tmp_path)
    assert [(one.plane, one.chosen) for one in volume.candidates] == [("axial", True), ("coronal", False)]
    assert_on_the_voxels(segment(volume, tiny_model), by_uid(volume, truth))


def test_what_is_refused(tmp_path: Path) -> None:
    for folder, directions, after, error in (
        ("gap", turned(), lambda paths: [path.unlink() for path in paths[9:13]], MissingSlices),
        ("tilted gap", tilted(14), lambda paths: [path.unlink() for path in paths[9:13]], MissingSlices),
        ("too far", tilted(50), lambda paths: None, InvalidGeometry),
    ):
        write_phantom(tmp_path / folder, directions)
        after(sorted((tmp_path / folder).iterdir()))
        with pytest.raises(error, match="tilted" if folder != "gap" else "missing"):
            read_upload(tmp_path / folder, tmp_path)


def test_two_patients(tmp_path: Path) -> None:
    write_phantom(tmp_path / "study", turned())
    write_phantom(tmp_path / "study", turned(), name="other", PatientID="OTHER", SeriesInstanceUID="1.2.3")
    with pytest.raises(MultiplePatients, match="2 different patient identifiers"):
        read_upload(tmp_path / "study", tmp_path)
