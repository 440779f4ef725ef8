"""The scan and its label map on a coarse grid, for a quick look in a browser.

    preview/ct.nii.gz       HU as int16
    preview/labels.nii.gz   the label map of the result, with its names and colours in the header

Both have every n-th voxel of the source along each axis, so a voxel of the preview is a voxel of the source: nothing is
interpolated, and positions in millimetres are those of the findings.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service.imaging.geometry import Geometry, Shape
from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.reporting.nifti import label_map_slabs, nifti_header, write_nifti
from service.reporting.regions import Region
from service.reporting.scan import write_scan

FOLDER: Final = "preview"
CT: Final = f"{FOLDER}/ct.nii.gz"
LABELS: Final = f"{FOLDER}/labels.nii.gz"
MAX_SIZE: Final = 256
"""Most voxels along an axis."""


def preview_steps(shape: Shape) -> Shape:
    """Every how many voxels one is kept, along (i, j, k)."""
    i, j, k = (-(-size // MAX_SIZE) for size in shape)
    return i, j, k


def preview_geometry(geometry: Geometry) -> Geometry:
    """The grid of the kept voxels; its first one is the source's first."""
    steps = preview_steps(geometry.shape)
    i, j, k = (-(-size // step) for size, step in zip(geometry.shape, steps, strict=True))
    return Geometry((i, j, k), geometry.affine @ np.diag([*steps, 1.0]))


def write_preview_ct(path: Path, volume: Volume) -> None:
    """Write the scan."""
    i, j, k = preview_steps(volume.geometry.shape)
    write_scan(path, preview_geometry(volume.geometry), volume.hu[::i, ::j, ::k], "CT preview, HU")


def write_preview_labels(path: Path, masks: Masks, order: Sequence[Region], dtype: DTypeLike) -> None:
    """Write the label map (value = label.index); later regions of `order` lie over earlier ones."""
    header = nifti_header(preview_geometry(masks.geometry), dtype, description="label map preview", labels=masks.labels)
    slabs = label_map_slabs(masks.geometry, order, dtype)
    write_nifti(path, header, _every_nth(slabs, preview_steps(masks.geometry.shape)))


def _every_nth(slabs: Iterable[NDArray[np.generic]], steps: Shape) -> Iterator[NDArray[np.generic]]:
    """The kept voxels of slabs (i, j, some k) that follow each other along k."""
    i, j, k = steps
    first = 0
    for slab in slabs:
        yield slab[::i, ::j, -first % k :: k]
        first += slab.shape[2]
