"""A whole phantom scan from one seed: patient, scanner settings, field of view."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.phantom.anatomy import Anatomy, rasterize, sample_anatomy, trunk_grid
from training.phantom.lesions import PlantedLesion
from training.phantom.render import render_hu
from training.phantom.seeds import stream
from training.phantom.tissues import Phase, draw_phase, sample_tissue_hu


@dataclass(frozen=True)
class FieldOfView:
    """What part of the patient a scan shows; heights in mm of the reference body, whose L1 lies at 0."""

    low_z: float  #: -330 is the upper thigh
    high_z: float  #: 305 is above the lung apices
    width: float = 1.0  #: share of the trunk's width and depth; below 1 cuts the skin, above 1 shows more air


TRUNK = FieldOfView(-330.0, 305.0, 1.1)
ABDOMEN = FieldOfView(-130.0, 110.0)
ABDOMEN_PELVIS = FieldOfView(-330.0, 110.0)
CHEST = FieldOfView(-20.0, 305.0)


@dataclass(frozen=True)
class ScanSettings:
    """How the scanner was set."""

    phase: Phase
    spacing_mm: tuple[float, float, float]
    noise_hu: float
    kernel_mm: float  #: sigma of the point spread; 0 or less: a sharp kernel
    field_of_view: FieldOfView


@dataclass(frozen=True)
class Phantom:
    """A phantom scan; arrays are (X, Y, Z) in RAS orientation."""

    hu: NDArray[np.int16]
    labels: NDArray[np.uint32]  #: bit c is channel c of `training.labels`
    affine: NDArray[np.float64]  #: voxel -> RAS mm
    phase: Phase
    lesions: tuple[PlantedLesion, ...]
    seed: int


def sample_settings(seed: int) -> ScanSettings:
    """Scanner settings as hospitals vary them."""
    rng = stream(seed, "scanner")
    phase = draw_phase(rng)
    in_plane = float(rng.uniform(0.6, 1.0))
    slice_mm = float(rng.choice([0.8, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0], p=[0.08, 0.14, 0.18, 0.18, 0.15, 0.15, 0.12]))
    base = (TRUNK, ABDOMEN, ABDOMEN_PELVIS, CHEST)[int(rng.choice(4, p=[0.3, 0.25, 0.3, 0.15]))]
    view = FieldOfView(
        base.low_z + float(rng.uniform(-10, 15)),
        base.high_z + float(rng.uniform(-15, 10)),
        float(rng.uniform(0.85, 1.2)),
    )
    sharp = rng.random() < 0.12
    kernel = 0.0 if sharp else float(rng.uniform(0.45, 1.1))
    return ScanSettings(phase, (in_plane, in_plane, slice_mm), float(rng.uniform(5, 28)), kernel, view)


def scan_grid(
    anatomy: Anatomy, view: FieldOfView, spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of a field of view."""
    shape, affine = trunk_grid(anatomy, spacing_mm, low_z=view.low_z, high_z=view.high_z)
    wide = [max(1, round(shape[a] * view.width)) for a in range(2)]
    for a in range(2):
        affine[a, 3] += (shape[a] - wide[a]) / 2 * spacing_mm[a]
    return (wide[0], wide[1], shape[2]), affine


def draw_phantom(
    seed: int, *, spacing_mm: tuple[float, float, float] | None = None, field_of_view: FieldOfView | None = None
) -> Phantom:
    """The phantom scan of a seed; spacing and field of view are drawn too unless given."""
    anatomy = sample_anatomy(seed)
    settings = sample_settings(seed)
    spacing = spacing_mm or settings.spacing_mm
    shape, affine = scan_grid(anatomy, field_of_view or settings.field_of_view, spacing)
    raster = rasterize(anatomy, shape, affine)
    hu = render_hu(
        raster.tissue, sample_tissue_hu(stream(seed, "tissue"), settings.phase), stream(seed, "noise"),
        spacing_mm=spacing, noise_hu=settings.noise_hu, kernel_mm=settings.kernel_mm,
    )  # fmt: skip
    return Phantom(hu, raster.labels, affine, settings.phase, raster.lesions, seed)
