"""Key images: the diameters on them are those of findings.json, measured with the picture's own scale bar."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import pdist

from service.reporting.artifacts import write_artifacts
from service.reporting.contours import visible
from service.reporting.findings import measure
from service.reporting.key_images import CARD, LONGEST, PERPENDICULAR, WIDTH, draw_key_images
from service.reporting.outputs import KEY_IMAGES_LEFT_OUT, OutputPlan
from service.request import Output
from tests.support.reporting import LABELS, PROVENANCE, abdomen, box_mask, lesion, organ, reoriented, scan

RADII_MM = (24.0, 13.0, 9.0)
TUMOR = next(label for label in LABELS if label.name == "liver_tumor")


def _rotation(degrees_xyz: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(3)
    for axis, degrees in enumerate(degrees_xyz):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        first, second = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[[first, first, second, second], [first, second, first, second]] = cos, -sin, sin, cos
        matrix = turn @ matrix
    return matrix


def _ellipsoid(spacing_mm, turned=(0.0, 0.0, 0.0), in_slice_degrees=25.0):
    """A scan whose grid is turned in the patient, with one ellipsoid whose long axes lie in a slice."""
    size = tuple(round(mm / step) for mm, step in zip((160.0, 140.0, 60.0), spacing_mm, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = _rotation(turned) @ np.diag(spacing_mm)
    affine[:3, 3] = (11.0, -40.0, 300.0)
    along_mm = (np.moveaxis(np.indices(size), 0, -1) - np.array([n // 2 for n in size])) * spacing_mm
    in_slice = along_mm @ _rotation((0.0, 0.0, in_slice_degrees))
    inside = np.square(in_slice / RADII_MM).sum(axis=-1) <= 1.0
    hu = np.where(inside, 60, 110).astype(np.int16)
    return scan(hu, {"liver": np.ones(size, bool), "liver_tumor": inside}, affine)


def _drawn(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """(n, 2) row and column of the slice's pixels that have nearly this colour."""
    pixels = np.asarray(picture).astype(int)[CARD.top : CARD.bottom, CARD.left : CARD.right]
    return np.argwhere(np.abs(pixels - color).max(axis=2) < 40)


def _pixels_per_mm(picture: Image.Image) -> float:
    """From the bar in the lower right corner, 2 cm long in these pictures."""
    corner = np.asarray(picture)[CARD.bottom - 17 : CARD.bottom - 14, CARD.left : CARD.right].min(axis=2)
    row = (corner == 255).sum(axis=1).max()
    return (row + 1) / 20.0  # and its black frame


@pytest.mark.parametrize(
    ("spacing_mm", "turned"),
    [
        ((0.8, 0.8, 3.0), (0.0, 0.0, 0.0)),
        ((0.6, 1.4, 2.0), (0.0, 0.0, 0.0)),
        ((1.5, 0.7, 5.0), (14.0, -20.0, 9.0)),
        ((0.8, 0.8, 2.5), (-30.0, 18.0, 40.0)),
    ],
    ids=["square pixels", "anisotropic pixels", "anisotropic and oblique", "oblique"],
)
def test_the_drawn_axes_are_those_of_the_findings(spacing_mm, turned):
    volume, masks = _ellipsoid(spacing_mm, turned)
    findings = measure(volume, masks, PROVENANCE)
    ((found, picture),) = draw_key_images(volume, masks, findings)
    voxel_mm = max(spacing_mm[:2])
    assert found.longest_axial_diameter_mm == pytest.approx(2 * RADII_MM[0], abs=2 * voxel_mm)
    assert found.perpendicular_diameter_mm == pytest.approx(2 * RADII_MM[1], abs=2 * voxel_mm)
    scale = _pixels_per_mm(picture)
    longest, across = _drawn(picture, LONGEST), _drawn(picture, PERPENDICULAR)
    assert pdist(longest).max() / scale == pytest.approx(found.longest_axial_diameter_mm, abs=voxel_mm)
    assert pdist(across).max() / scale == pytest.approx(found.perpendicular_diameter_mm, abs=voxel_mm)
    directions = [np.linalg.svd(points - points.mean(axis=0))[2][0] for points in (longest, across)]
    assert abs(directions[0] @ directions[1]) < 0.05  # a right angle in the picture as in the patient


def test_the_axes_lie_on_the_contour_of_the_mask():
    volume, masks = _ellipsoid((0.6, 1.4, 2.0))
    ((_, picture),) = draw_key_images(volume, masks, measure(volume, masks, PROVENANCE))
    contour = _drawn(picture, visible(TUMOR.color))
    assert len(contour) > 200
    longest = _drawn(picture, LONGEST)
    ends = longest[[longest[:, 1].argmin(), longest[:, 1].argmax()]]
    for end in ends:
        assert np.linalg.norm(contour - end, axis=1).min() < 1.4 * 832 / 144  # a voxel


def test_the_picture_does_not_depend_on_the_orientation_of_the_array():
    volume, masks = abdomen((3.0, 3.0, 3.0))
    turned = reoriented(volume, masks, (2, 0, 1), (True, False, True))
    for (one, picture), (other, again) in zip(
        draw_key_images(volume, masks, measure(volume, masks, PROVENANCE)),
        draw_key_images(*turned, measure(*turned, PROVENANCE)),
        strict=True,
    ):
        assert one.id == other.id
        middle = (slice(CARD.top + 40, CARD.bottom - 40), slice(CARD.left + 40, CARD.right - 40))
        different = np.abs(np.asarray(picture)[middle].astype(int) - np.asarray(again)[middle]).max(axis=2) > 40
        assert different.mean() < 0.005


@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 64, 64), (64, 3, 64), (20, 20, 200)])
def test_odd_shapes(shape):
    mask = np.zeros(shape, bool)
    mask[tuple(size // 2 for size in shape)] = True
    volume, masks = scan(np.zeros(shape, np.int16), {"liver_tumor": mask})
    ((_, picture),) = draw_key_images(volume, masks, measure(volume, masks, PROVENANCE))
    assert (picture.mode, picture.width) == ("RGB", WIDTH)


def test_a_lesion_at_the_border_and_one_as_large_as_the_scan_are_drawn():
    shape = (40, 30, 10)
    for mask in (box_mask(shape, (0, 3), (0, 3), (0, 1)), np.ones(shape, bool)):
        volume, masks = scan(np.zeros(shape, np.int16), {"liver_tumor": mask})
        ((found, picture),) = draw_key_images(volume, masks, measure(volume, masks, PROVENANCE))
        assert found.cut_by_field_of_view
        assert len(_drawn(picture, LONGEST)) > 50


def test_long_names_stay_on_the_picture():
    host, long = organ(1, "o" * 64, (200, 0, 0), "1"), lesion(2, "l" * 64, (0, 200, 0), ("o" * 64,))
    shape = (40, 40, 10)
    painted = {host.name: np.ones(shape, bool), long.name: box_mask(shape, (10, 20), (10, 20), (2, 6))}
    volume, masks = scan(np.zeros(shape, np.int16), painted, labels=(host, long))
    ((_, picture),) = draw_key_images(volume, masks, measure(volume, masks, PROVENANCE))
    pixels = np.asarray(picture)
    assert (pixels[:84, -20:] == pixels[0, -1]).all()


def _noise(count: int):
    shape = (40, 40, 20)
    mask = np.zeros(shape, bool)
    mask[2::4, 2::4, 2::4] = True
    volume, masks = scan(np.zeros(shape, np.int16), {"liver_tumor": mask & (np.cumsum(mask).reshape(shape) <= count)})
    return volume, masks, measure(volume, masks, PROVENANCE)


def test_the_largest_lesions_are_pictured_and_the_rest_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("service.reporting.outputs.MOST_KEY_IMAGES", 3)
    plan = OutputPlan(frozenset({Output.KEY_IMAGES}))
    volume, masks, findings = _noise(5)
    assert len(findings.lesions) == 5
    noted = plan.noted_in(findings)
    assert noted.warnings[-1].code == KEY_IMAGES_LEFT_OUT
    assert "2 smaller ones" in noted.warnings[-1].message
    assert OutputPlan(frozenset({Output.CSV})).noted_in(findings) == findings
    names = [item.name for item in write_artifacts(tmp_path, volume, masks, noted, plan)]
    assert names == ["findings.json", *(f"key_images/liver_tumor-{n}.png" for n in range(1, 4))]
    _, _, few = _noise(3)
    assert plan.noted_in(few) == few


def test_nothing_found_makes_no_folder(tmp_path: Path):
    volume, masks = scan(np.zeros((8, 8, 8), np.int16), {})
    write_artifacts(
        tmp_path, volume, masks, measure(volume, masks, PROVENANCE), OutputPlan(frozenset({Output.KEY_IMAGES}))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts.json", "findings.json"]
