"""Masks back on the source grid: a scan walks the whole way and its sphere comes back where it was."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from service.imaging.geometry import Geometry
from service.imaging.volume import SourceFormat, Volume
from service.inference import restoration
from service.inference.grid import cropped, full_box, whole_grid
from service.inference.logits import Logits
from service.inference.manifest import Interpolation, MinPeak, RuleSets
from service.inference.masks import LabelMask, Masks
from service.inference.model import Model
from service.inference.preprocessing import preprocess
from service.inference.restoration import _drop_fragments, restore_masks
from service.inference.sliding_window import predict_windows
from service.progress import Stage
from tests.support.logits import all_values, whole_logits
from tests.support.reporting import label_mask

LINEAR, NEAREST = Interpolation.LINEAR, Interpolation.NEAREST
Mask = NDArray[np.bool_]

TILT = Rotation.from_euler("xyz", [10, -14, 8], degrees=True).as_matrix()
GRIDS = {
    "RAS": Geometry((70, 80, 60), np.diag([1.5, 1.5, 2.0, 1.0])),
    "LPS": Geometry((70, 80, 60), np.array([[-1.5, 0, 0, 50], [0, -1.5, 0, 60], [0, 0, 2, 5], [0, 0, 0, 1.0]])),
    "permuted": Geometry((40, 80, 90), np.array([[0, 0, -1.2, 9], [1.5, 0, 0, 7], [0, -1.4, 0, 5], [0, 0, 0, 1.0]])),
    "oblique": Geometry(
        (70, 60, 80),
        np.block([[TILT @ np.array([[-1.5, 0, 0], [0, 0, 1.4], [0, 2.0, 0]]), np.full((3, 1), 20.0)], [0, 0, 0, 1]]),
    ),
    "thick slices": Geometry((80, 80, 24), np.diag([-1.25, 1.25, 5.0, 1.0])),
    "half the model's spacing": Geometry((90, 84, 80), np.diag([1.0, 1.0, 1.0, 1.0])),
    "coarser than the model": Geometry((40, 40, 40), np.diag([3.0, 3.0, 3.0, 1.0])),
}


def distance_mm(geometry: Geometry, moved_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> NDArray[np.float64]:
    """Distance of each voxel to the centre of the grid, moved by some millimetres (RAS)."""
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), axis=-1)
    center = geometry.to_ras_mm((np.array(geometry.shape) - 1) / 2) + np.array(moved_mm)
    distance: NDArray[np.float64] = np.linalg.norm(geometry.to_ras_mm(ijk) - center, axis=-1)
    return distance


def phantom(geometry: Geometry) -> tuple[Volume, dict[str, Mask]]:
    """Fat in air; in it a liver with a tumour, right of the centre, and a bone, left of it."""
    liver = distance_mm(geometry, (6.0, 0.0, 0.0)) < 22
    tumor = distance_mm(geometry, (10.0, 2.0, 0.0)) < 9
    bone = distance_mm(geometry, (-24.0, -8.0, 0.0)) < 7
    hu = np.full(geometry.shape, -1000, np.int16)
    hu[distance_mm(geometry) < 45] = -100
    hu[liver], hu[bone] = 90, 900
    hu[tumor] = 180
    volume = Volume(hu, geometry, SourceFormat.NIFTI, "0" * 64)
    return volume, {"liver": liver, "liver_tumor": tumor, "bone": bone}


def segment(
    volume: Volume, model: Model, targets: list[str] | None = None, interpolation: Interpolation = LINEAR
) -> Masks:
    manifest = model.bundle.manifest
    network_input = preprocess(volume, manifest.preprocessing)
    wanted = model.bundle.labels_for(targets)
    logits = predict_windows(network_input, model.predictor.for_labels(wanted), manifest.sliding_window)
    return restore_masks(logits, wanted, onto=volume.geometry, mask_interpolation=interpolation)


def with_corner_flipped(masks: Masks, name: str) -> LabelMask:
    whole = masks.mask(name)
    whole[0, 0, 0] ^= True
    return label_mask(whole)


def dice(a: Mask, b: Mask) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("interpolation", [LINEAR, NEAREST])
@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS.keys())
def test_the_whole_way_and_back(tiny_model: Model, geometry: Geometry, interpolation: Interpolation) -> None:
    volume, truth = phantom(geometry)

    masks = segment(volume, tiny_model, interpolation=interpolation)

    assert masks.geometry == geometry
    assert [label.name for label in masks.labels] == ["liver", "bone", "lung", "liver_tumor"]
    # The bundle's network sees 4 mm blocks: small structures lose their surface, whichever way they are carried.
    small, shift_mm = (0.9, 0.5) if interpolation is LINEAR else (0.8, 1.75)  # mm: half the diagonal of a model voxel
    assert dice(masks.mask("liver"), truth["liver"]) > 0.95
    assert dice(masks.mask("bone"), truth["bone"]) > small
    assert dice(masks.mask("liver_tumor"), truth["liver_tumor"]) > small
    for name in truth:
        found = np.argwhere(masks.mask(name)).mean(axis=0)
        offset_mm = geometry.affine[:3, :3] @ (found - np.argwhere(truth[name]).mean(axis=0))
        assert np.linalg.norm(offset_mm) < shift_mm, name
    assert not (masks.mask("lung") & truth["liver"]).any()


def sphere_logits(model: Model, geometry: Geometry, stride: int, radius_mm: float, *, crop: bool = False) -> Logits:
    """What a perfect network would answer about a liver: millimetres to its surface, on the feature grid."""
    grid = whole_grid(geometry, (2.0, 2.0, 2.0))
    if crop:
        grid = cropped(grid, tuple(slice(4, side.stop - 3) for side in full_box(grid.whole)))
    shape = [-(-n // stride) for n in grid.shape]
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1) * stride + (stride - 1) / 2
    center = geometry.to_ras_mm((np.array(geometry.shape) - 1) / 2)
    values = radius_mm - np.linalg.norm(grid.geometry.to_ras_mm(ijk) - center, axis=-1)
    return whole_logits(values[None].astype(np.float32), model.bundle.manifest.labels[:1], stride, grid)


@pytest.mark.parametrize("interpolation", [LINEAR, NEAREST])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS.keys())
def test_a_sphere_comes_back(
    tiny_model: Model, geometry: Geometry, stride: int, crop: bool, interpolation: Interpolation
) -> None:
    logits = sphere_logits(tiny_model, geometry, stride, 24.0, crop=crop)
    masks = restore_masks(logits, logits.labels, onto=geometry, mask_interpolation=interpolation)

    sphere = distance_mm(geometry) < 24.0
    assert masks.geometry == geometry
    assert dice(masks.mask("liver"), sphere) > (0.98 if interpolation is LINEAR else 0.95)
    volume_ratio = masks.mask("liver").sum() / sphere.sum()
    assert 0.95 < volume_ratio < 1.05


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_only_the_surroundings_are_upsampled_and_nothing_is_lost(tiny_model: Model, stride: int) -> None:
    """Where source and model grid are one, the mask is that of upsampling everything with torch."""
    geometry = Geometry((30, 33, 37), np.diag([2.0, 2.0, 2.0, 1.0]))
    shape = [-(-n // stride) for n in geometry.shape]
    bone = tiny_model.bundle.manifest.labels[1:2]  # no rules
    values = np.random.default_rng(0).normal(-2.5, 2.0, (1, *shape)).astype(np.float32)
    values[:, :, :, shape[2] // 2 :] = -5.0  # half of the grid is empty, so there is a box
    logits = whole_logits(values, bone, stride, whole_grid(geometry, (2.0, 2.0, 2.0)))

    masks = restore_masks(logits, bone, onto=geometry, mask_interpolation=LINEAR)

    upsampled = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], scale_factor=stride, mode="trilinear", align_corners=False
    )[0, 0, :30, :33, :37]
    clear = np.abs(upsampled.numpy()) > 1e-4
    np.testing.assert_array_equal(masks.mask("bone")[clear], (upsampled > 0).numpy()[clear])
    assert masks.mask("bone").any()


def test_a_label_whose_mask_fills_the_scan_reaches_every_voxel(tiny_model: Model) -> None:
    """The last source voxels lie behind the model grid's last centre; its value goes on."""
    geometry = Geometry((21, 22, 24), np.diag([-0.7, 0.9, 1.1, 1.0]))
    for interpolation in (LINEAR, NEAREST):
        logits = sphere_logits(tiny_model, geometry, 2, 1000.0)
        masks = restore_masks(logits, logits.labels, onto=geometry, mask_interpolation=interpolation)
        assert masks.mask("liver").all()


@pytest.mark.parametrize("interpolation", [LINEAR, NEAREST])
@pytest.mark.parametrize("geometry", [GRIDS["permuted"], GRIDS["half the model's spacing"]], ids=["permuted", "fine"])
def test_the_thickness_of_a_slab_changes_nothing(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, geometry: Geometry, interpolation: Interpolation
) -> None:
    volume, _ = phantom(geometry)
    found = []
    for planes in (1000, 32, 5):
        monkeypatch.setattr(restoration, "_SLAB", planes)
        found.append(segment(volume, tiny_model, interpolation=interpolation))
    at_once, *in_slabs = found
    for masks in in_slabs:
        assert masks.sha256 == at_once.sha256
        np.testing.assert_array_equal(
            masks.lesion_probability["liver_tumor"], at_once.lesion_probability["liver_tumor"]
        )


def test_logits_are_forgotten_on_the_way(tiny_model: Model) -> None:
    """The liver's stay until the tumour, which asks for the liver as predicted, is done; those of no use go at once."""
    logits = sphere_logits(tiny_model, GRIDS["RAS"], 2, 24.0)
    liver, bone, _, tumor = tiny_model.bundle.manifest.labels
    labels = (liver, bone, tumor)
    three = whole_logits(np.repeat(all_values(logits), 3, axis=0), labels, 2, logits.grid)
    left: list[set[str]] = []

    def look(_stage: Stage, _fraction: float) -> None:
        left.append({labels[channel].name for channel in three.kept})

    restore_masks(three, labels, onto=GRIDS["RAS"], mask_interpolation=LINEAR, progress=look)
    assert left == [
        {"liver", "bone", "liver_tumor"}, {"liver", "bone", "liver_tumor"}, {"liver", "liver_tumor"}, set(),
    ]  # fmt: skip


@pytest.mark.parametrize("interpolation", [LINEAR, NEAREST])
def test_what_lies_outside_the_crop_is_not_inside_a_mask(tiny_model: Model, interpolation: Interpolation) -> None:
    """The crop leaves out 4 model voxels of 2 mm: the first centre inside is at 8 mm, so the edge is at 7 mm."""
    geometry = Geometry((60, 60, 60), np.diag([0.6, 0.6, 0.6, 1.0]))
    logits = sphere_logits(tiny_model, geometry, 2, 1000.0, crop=True)
    mask = restore_masks(logits, logits.labels, onto=geometry, mask_interpolation=interpolation).mask("liver")
    expected = np.arange(60) * 0.6 > 7.0
    np.testing.assert_array_equal(mask[:45, 30, 30], expected[:45])
    np.testing.assert_array_equal(mask[30, 30, :45], expected[:45])


def test_the_threshold_is_the_labels_own(tiny_model: Model) -> None:
    geometry = GRIDS["RAS"]
    logits = sphere_logits(tiny_model, geometry, 2, 24.0)
    # A logit of ln(0.9 / 0.1) = 2.2 lies 2.2 mm below the surface.
    strict = (logits.labels[0].model_copy(update={"threshold": 0.9}),)
    logits = whole_logits(all_values(logits), strict, 2, logits.grid)
    masks = restore_masks(logits, strict, onto=geometry, mask_interpolation=LINEAR)
    assert dice(masks.mask("liver"), distance_mm(geometry) < 24.0 - 2.2) > 0.95
    assert masks.mask("liver").sum() < 0.85 * (distance_mm(geometry) < 24.0).sum()


@pytest.mark.parametrize("geometry", GRIDS.values(), ids=GRIDS.keys())
def test_lesion_probability_is_that_of_the_masks_voxels(tiny_model: Model, geometry: Geometry) -> None:
    volume, truth = phantom(geometry)
    masks = segment(volume, tiny_model)

    assert set(masks.lesion_probability) == {"liver_tumor"}
    inside = masks.lesion_probability["liver_tumor"]
    mask = masks.mask("liver_tumor")
    assert inside.dtype == np.uint8
    assert inside.shape == (mask.sum(),)
    assert inside.min() > 50
    assert inside.mean() > 190
    assert inside[truth["liver_tumor"][mask]].max() > 250  # in the order of the volume
    surface = mask & ~binary_erosion(mask)
    assert inside[surface[mask]].mean() < inside.mean()


def test_a_subset_gives_the_same_masks_and_hides_the_hosts(tiny_model: Model) -> None:
    volume, _ = phantom(GRIDS["LPS"])
    everything = segment(volume, tiny_model)
    alone = segment(volume, tiny_model, ["liver_tumor"])
    assert [label.name for label in alone.labels] == ["liver_tumor"]
    np.testing.assert_array_equal(alone.mask("liver_tumor"), everything.mask("liver_tumor"))
    assert len(alone.of_labels) == 1
    with pytest.raises(KeyError):
        alone.mask("liver")


def test_a_tumour_without_its_host_is_removed(tiny_model: Model) -> None:
    geometry = GRIDS["RAS"]
    hu = np.full(geometry.shape, -100, np.int16)
    hu[distance_mm(geometry, (-12.0, 0.0, 0.0)) < 12] = 90  # the liver
    hu[distance_mm(geometry, (30.0, 0.0, 0.0)) < 9] = 180  # of the tumour's HU, and also of the liver's
    masks = segment(Volume(hu, geometry, SourceFormat.NIFTI, "0" * 64), tiny_model)
    assert masks.mask("liver").any()
    assert not masks.mask("liver_tumor").any()
    assert masks.lesion_probability == {}


@pytest.mark.parametrize("interpolation", [LINEAR, NEAREST])
def test_of_two_spheres_the_certain_one_stays_with_its_whole_extent(
    tiny_model: Model, interpolation: Interpolation
) -> None:
    """Two of radius 9 mm; the logits of one rise to 3 inside, of the other to 1.5. Asked for is 0.9, a logit of 2.2."""
    geometry = GRIDS["LPS"]
    organ = sphere_logits(tiny_model, geometry, 2, 24.0)
    grid = organ.grid.geometry
    centers = np.stack(np.meshgrid(*(2 * np.arange(n) + 0.5 for n in organ.shape), indexing="ij"), axis=-1)
    at_mm = grid.to_ras_mm(centers) - geometry.to_ras_mm((np.array(geometry.shape) - 1) / 2)
    doubtful, sure = (
        np.clip(9.0 - np.linalg.norm(at_mm - np.array([x, 0, 0]), axis=-1), -5.0, highest)
        for x, highest in ((-18.0, 1.5), (18.0, 3.0))
    )
    values = np.maximum(doubtful, sure)[None].astype(np.float32)
    lenient, strict = (
        organ.labels[0].model_copy(update={"postprocessing": RuleSets(viscera=rules)})
        for rules in ((), (MinPeak(probability=0.9),))
    )
    both, one = (
        restore_masks(
            whole_logits(values, (label,), 2, organ.grid), [label], onto=geometry, mask_interpolation=interpolation
        ).mask(label.name)
        for label in (lenient, strict)
    )
    assert both[distance_mm(geometry, (-18.0, 0.0, 0.0)) < 7].all()
    assert dice(one, distance_mm(geometry, (18.0, 0.0, 0.0)) < 9) > 0.9
    assert not one[distance_mm(geometry, (-18.0, 0.0, 0.0)) < 9].any()


def test_fragments_beside_a_lesion_are_dropped() -> None:
    """Components of 27, 8 and 1 voxels, of which those from 8 on stay."""
    whole = np.zeros((20, 12, 12), np.bool_)
    for corner, edge in ((2, 3), (9, 2), (15, 1)):
        whole[corner : corner + edge, 4 : 4 + edge, 4 : 4 + edge] = True
    mask = label_mask(whole)
    _drop_fragments(mask, 8.0)
    whole[15, 4, 4] = False
    np.testing.assert_array_equal(mask.read(full_box(whole.shape)), whole)
    assert mask.bounds() == (slice(2, 11), slice(4, 7), slice(4, 7))
    _drop_fragments(mask, 28.0)
    assert mask.bounds() is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 50, 50), (50, 50, 3), (50, 1, 50), (2, 2, 2)])
def test_tiny_scans_keep_their_shape(tiny_model: Model, shape: tuple[int, int, int]) -> None:
    geometry = Geometry(shape, np.diag([-0.9, -0.9, 3.0, 1.0]))
    volume = Volume(np.full(shape, 900, np.int16), geometry, SourceFormat.NIFTI, "0" * 64)
    masks = segment(volume, tiny_model)
    assert masks.geometry == geometry
    assert masks.mask("liver").shape == shape


def test_a_scan_of_air_has_empty_masks(tiny_model: Model) -> None:
    geometry = Geometry((20, 30, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    air = Volume(np.full(geometry.shape, -1000, np.int16), geometry, SourceFormat.NIFTI, "0" * 64)
    masks = segment(air, tiny_model)
    assert all(mask.bounds() is None for mask in masks.of_labels)
    assert not masks.mask("liver").any()


def test_equal_input_gives_an_equal_hash_and_other_masks_another(tiny_model: Model) -> None:
    volume, _ = phantom(GRIDS["oblique"])
    masks = segment(volume, tiny_model)
    again = segment(volume, tiny_model)
    assert masks.sha256 == again.sha256

    others = [
        replace(masks, of_labels=(with_corner_flipped(masks, "liver"), *masks.of_labels[1:])),
        replace(masks, labels=masks.labels[:3], of_labels=masks.of_labels[:3]),
        replace(
            masks, geometry=Geometry(volume.geometry.shape, volume.geometry.affine + np.eye(4)[:, [3, 0, 1, 2]] * 1e-3)
        ),
    ]
    assert masks.sha256 not in [other.sha256 for other in others]


@pytest.mark.parametrize("count", [4, 33])
def test_the_hash_is_that_of_one_number_for_each_voxel(tiny_model: Model, count: int) -> None:
    """32 bits up to 32 labels, 64 for more, little-endian, in the order of the volume, behind shape, affine, names."""
    geometry = Geometry((19, 5, 11), np.diag([-2.0, 2.0, 2.0, 1.0]))
    (liver, *_) = tiny_model.bundle.manifest.labels
    labels = tuple(liver.model_copy(update={"index": n + 1, "name": f"label_{n}"}) for n in range(count))
    drawn = np.random.default_rng(4).random((count, *geometry.shape)) < 0.3
    masks = Masks(labels, tuple(label_mask(mask) for mask in drawn), geometry, {})
    word = np.dtype("<u4" if count <= 32 else "<u8")
    numbers = sum(mask.astype(word) << word.type(bit) for bit, mask in enumerate(drawn))
    names = "\n".join(label.name for label in labels)
    content = b"(19, 5, 11)" + geometry.affine.astype("<f8").tobytes() + names.encode() + numbers.astype(word).tobytes()
    assert masks.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("count", [32, 33, 64])
def test_every_one_of_many_labels_has_its_own_bit(tiny_model: Model, count: int) -> None:
    """Label n is a sphere of 6 + 0.2 n mm: each comes back as it does alone, the last one as well as the first."""
    geometry = Geometry((30, 24, 28), np.diag([-2.0, 2.0, 2.0, 1.0]))
    one = sphere_logits(tiny_model, geometry, 2, 6.0)
    (liver,) = one.labels
    labels = tuple(liver.model_copy(update={"index": n + 1, "name": f"sphere_{n}"}) for n in range(count))
    values = np.concatenate([all_values(one) + np.float32(0.2 * n) for n in range(count)])
    masks = restore_masks(whole_logits(values, labels, 2, one.grid), labels, onto=geometry, mask_interpolation=LINEAR)

    for n in (0, 30, 31, 32, 62, 63)[: 3 if count == 32 else 4 if count == 33 else 6]:
        alone = restore_masks(
            whole_logits(values[n : n + 1], labels[n : n + 1], 2, one.grid),
            labels[n : n + 1],
            onto=geometry,
            mask_interpolation=LINEAR,
        )
        np.testing.assert_array_equal(masks.mask(f"sphere_{n}"), alone.mask(f"sphere_{n}"))
    assert masks.mask(f"sphere_{count - 1}").sum() > masks.mask("sphere_0").sum() > 0
    last = masks.of_labels[-1], LabelMask(None)
    digests = {replace(masks, of_labels=(*masks.of_labels[:-1], mask)).sha256 for mask in last}
    assert masks.sha256 in digests
    assert len(digests) == 2


def test_progress_is_told_after_each_label(tiny_model: Model) -> None:
    logits = sphere_logits(tiny_model, GRIDS["RAS"], 2, 24.0)
    labels = tiny_model.bundle.manifest.labels[:2]
    two = whole_logits(np.repeat(all_values(logits), 2, axis=0), labels, 2, logits.grid)
    told: list[tuple[Stage, float]] = []
    restore_masks(two, two.labels, onto=GRIDS["RAS"], mask_interpolation=LINEAR, progress=lambda *at: told.append(at))
    assert told == [(Stage.POSTPROCESSING, fraction) for fraction in (0.0, 0.5, 1.0)]
