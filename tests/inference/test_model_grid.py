"""The model grid: axes, spacing, crop and intensities, by hand and against MONAI's transforms."""

import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import CropForeground, Orientation, Spacing
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from service.imaging.geometry import Geometry
from service.imaging.volume import SourceFormat, Volume
from service.inference.grid import ClosestRAS, bounding_box, cropped, grown, whole_grid
from service.inference.manifest import ForegroundCrop, Interpolation, Preprocessing
from service.inference.preprocessing import preprocess

LINEAR, ANTIALIAS = Interpolation.LINEAR, Interpolation.LINEAR_ANTIALIAS
TILT = Rotation.from_euler("xyz", [12, -9, 20], degrees=True).as_matrix()

AFFINES = {
    "RAS": np.diag([0.8, 0.9, 2.5, 1.0]),
    "LPS": np.array([[-0.8, 0, 0, 90], [0, -0.9, 0, 120], [0, 0, 2.5, -40], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, -2.5, 30], [0.8, 0, 0, -60], [0, -0.9, 0, 11], [0, 0, 0, 1.0]]),
    "oblique": np.block(
        [[TILT @ np.array([[-0.8, 0, 0], [0, 0, 2.5], [0, 0.9, 0]]), np.array([[10], [-20], [30.0]])], [0, 0, 0, 1]]
    ),
}


def preprocessing(
    spacing: float = 2.0, interpolation: Interpolation = LINEAR, crop: float | None = None
) -> Preprocessing:
    return Preprocessing(
        orientation="RAS",
        spacing_mm=(spacing, spacing, spacing),
        intensity_range_hu=(-1000.0, 1000.0),
        output_range=(-1.0, 1.0),
        interpolation=interpolation,
        foreground_crop=None if crop is None else ForegroundCrop(above_hu=crop),
    )


def volume_of(hu: NDArray[np.float32], affine: NDArray[np.float64]) -> Volume:
    return Volume(hu, Geometry(hu.shape, affine), SourceFormat.NIFTI, "0" * 64)


def smooth_hu(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    noise = gaussian_filter(np.random.default_rng(3).standard_normal(shape), 2.0)
    return (noise / np.abs(noise).max() * 900).astype(np.float32)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_parity_with_monai_orientation_and_spacing(affine: NDArray[np.float64]) -> None:
    hu = smooth_hu((33, 28, 21))
    image = MetaTensor(hu[None], affine=affine)
    image = Orientation(axcodes="RAS", labels=None)(image)
    image = Spacing(pixdim=(2.0, 2.0, 2.0), mode="bilinear", padding_mode="border", dtype=np.float64)(image)

    network_input = preprocess(volume_of(hu, affine), preprocessing())

    assert network_input.values.shape == tuple(image.shape[1:])
    np.testing.assert_allclose(network_input.grid.geometry.affine, np.asarray(image.affine), atol=1e-6)
    np.testing.assert_allclose(network_input.values * 1000, np.asarray(image[0]), atol=0.05)


def test_parity_with_monai_crop_foreground() -> None:
    hu = smooth_hu((33, 28, 21))
    hu[:5], hu[:, -4:], hu[:, :, :3] = -1000, -1000, -1000
    image = MetaTensor(hu[None], affine=AFFINES["RAS"])
    spaced = Spacing(pixdim=(2.0, 2.0, 2.0), mode="bilinear", padding_mode="border", dtype=np.float64)(image)
    expected = CropForeground(select_fn=lambda values: values > -300, allow_smaller=True)(spaced)

    network_input = preprocess(volume_of(hu, AFFINES["RAS"]), preprocessing(crop=-300))

    assert network_input.grid.shape == tuple(expected.shape[1:])
    np.testing.assert_allclose(network_input.grid.geometry.affine, np.asarray(expected.affine), atol=1e-6)
    np.testing.assert_allclose(network_input.values * 1000, np.asarray(expected[0]), atol=0.05)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_a_point_has_the_same_place_on_both_grids(affine: NDArray[np.float64]) -> None:
    """HU that grow linearly in the patient's space read the same wherever they are sampled."""
    shape = (20, 30, 25)
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    direction = np.array([3.0, -2.0, 4.0])
    hu = (Geometry(shape, affine).to_ras_mm(ijk) @ direction).astype(np.float32)

    grid_input = preprocess(volume_of(hu, affine), preprocessing(spacing=1.7))

    inside = tuple(slice(0, n - 1) for n in grid_input.grid.shape)  # the last centre may lie behind the scan
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in grid_input.grid.shape), indexing="ij"), axis=-1)
    expected = grid_input.grid.geometry.to_ras_mm(ijk) @ direction
    np.testing.assert_allclose(grid_input.values[inside] * 1000, expected[inside], atol=0.05)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_a_view_along_ras_can_be_undone(affine: NDArray[np.float64]) -> None:
    source = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    to_ras = ClosestRAS.of(Geometry(source.shape, affine))
    seen = to_ras.view(source)

    np.testing.assert_array_equal(to_ras.source_array(seen), source)
    box = (slice(0, 1), slice(1, 2), slice(0, 2))
    covered = source[to_ras.source_box(box, source.shape)]
    np.testing.assert_array_equal(to_ras.source_array(seen[box]), covered)
    # The diagonal of a canonical affine is positive and dominates.
    direction = to_ras.geometry(Geometry(source.shape, affine)).affine[:3, :3]
    assert (np.abs(direction).argmax(axis=0) == [0, 1, 2]).all()
    assert (np.diag(direction) > 0).all()


def test_the_shape_and_first_centre_by_hand() -> None:
    """10 voxels of 3 mm span 27 mm between centres: 13.5 steps of 2 mm, so round(14.5) = 14 centres."""
    grid = whole_grid(Geometry((10, 1, 2), np.diag([3.0, 3.0, 0.5, 1.0])), (2.0, 2.0, 2.0))
    assert grid.whole == (14, 1, 1)
    np.testing.assert_array_equal(grid.geometry.affine, np.diag([2.0, 2.0, 2.0, 1.0]))

    inner = cropped(grid, (slice(3, 9), slice(0, 1), slice(0, 1)))
    assert inner.shape == (6, 1, 1)
    np.testing.assert_array_equal(inner.geometry.affine[:3, 3], [6.0, 0.0, 0.0])


def test_intensities_are_clipped_and_scaled() -> None:
    hu = np.array([-3000, -1000, 0, 500, 1000, 3000], np.int16).reshape(6, 1, 1)
    values = preprocess(volume_of(hu, np.diag([2.0, 2.0, 2.0, 1.0])), preprocessing()).values
    np.testing.assert_allclose(values.ravel(), [-1.0, -1.0, 0.0, 0.5, 1.0, 1.0], atol=1e-6)
    assert values.dtype == np.float32


def test_a_scan_of_air_alone_is_not_cropped() -> None:
    air = np.full((4, 5, 6), -1000, np.int16)
    network_input = preprocess(volume_of(air, np.diag([2.0, 2.0, 2.0, 1.0])), preprocessing(crop=-300))
    assert network_input.values.shape == (4, 5, 6)
    assert (network_input.values == network_input.background).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (40, 40, 3), (2, 2, 2)])
@pytest.mark.parametrize("interpolation", [LINEAR, ANTIALIAS])
def test_thin_scans_keep_at_least_one_voxel(shape: tuple[int, int, int], interpolation: Interpolation) -> None:
    hu = np.full(shape, 40, np.int16)
    network_input = preprocess(volume_of(hu, np.diag([0.7, 0.7, 0.7, 1.0])), preprocessing(2.0, interpolation, -300))
    np.testing.assert_allclose(network_input.values, 0.04, atol=1e-6)


def test_antialias_does_not_see_noise_that_linear_sees() -> None:
    noise = np.random.default_rng(0).normal(0, 100, (60, 60, 60)).astype(np.float32)
    sigma = {
        kind: preprocess(volume_of(noise, np.diag([0.5, 0.5, 0.5, 1.0])), preprocessing(2.0, kind)).values.std()
        for kind in (LINEAR, ANTIALIAS)
    }
    assert sigma[ANTIALIAS] < 0.2 * sigma[LINEAR]


def test_boxes_by_hand() -> None:
    mask = np.zeros((5, 6, 7), np.bool_)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    box = bounding_box(mask)
    assert box == (slice(1, 4), slice(2, 3), slice(3, 7))
    assert grown(box, (2, 1, 1), mask.shape) == (slice(0, 5), slice(1, 4), slice(2, 7))
