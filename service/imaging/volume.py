"""A CT volume in Hounsfield units, with its geometry and its provenance."""

import tempfile
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry


class SourceFormat(StrEnum):
    """What the upload was."""

    NIFTI = "nifti"  #: one .nii or .nii.gz
    DICOM = "dicom"  #: a series of CT images


@dataclass(frozen=True)
class Notice:
    """Something the reader of the result should know: a stable code and a sentence, without patient data."""

    code: str
    message: str


class Plane(StrEnum):
    """In which plane of the body the slices lie, or nearest to it."""

    AXIAL = "axial"
    SAGITTAL = "sagittal"
    CORONAL = "coronal"


@dataclass(frozen=True)
class Candidate:
    """One stack of CT images of an upload, as the choice among them saw it.

    `kernel` is soft, sharp or unknown. `reason` says in a sentence why it was taken, passed over or refused; what
    cannot be measured on a refused one is None.
    """

    series_uid: str
    series_number: int | None
    images: int
    chosen: bool
    reason: str
    plane: Plane | None = None
    original: bool | None = None
    kernel: str | None = None
    slices: int | None = None
    slice_spacing_mm: float | None = None
    slice_thickness_mm: float | None = None
    coverage_mm: float | None = None
    tilt_degrees: float | None = None


@dataclass(frozen=True)
class Acquisition:
    """What the headers of a chosen series and its positions say, for the checks of quality; all of DICOM input."""

    modality: str = ""
    slice_thickness_mm: float | None = None
    largest_deviation_mm: float = 0.0  #: of a slice from its even place
    interpolated_slices: int = 0
    has_contrast_agent: bool = False


@dataclass(frozen=True)
class Volume:
    """HU array with its geometry.

    `hu` is int16 or float32, shape == geometry.shape, indexed (i, j, k).
    `sop_instance_uids` (DICOM only) names the source image of each k, empty where a missing slice was interpolated;
    the k axis is then the slice axis. `frame_numbers` (multi-frame DICOM only) are its frames, from 1, and 0 there.
    `candidates` (DICOM only) are the stacks that the volume was chosen from, itself among them.
    `input_sha256` identifies the decoded voxels and their geometry, whatever the packaging.
    """

    hu: NDArray[np.int16] | NDArray[np.float32]
    geometry: Geometry
    source_format: SourceFormat
    input_sha256: str
    sop_instance_uids: tuple[str, ...] | None = None
    notices: tuple[Notice, ...] = ()
    frame_numbers: tuple[int, ...] | None = None
    candidates: tuple[Candidate, ...] = ()
    acquisition: Acquisition | None = None

    def on_disk(self, folder: Path) -> Self:
        """The same volume, its voxels mapped from a file in `folder` that has no name and ends with them.

        Raises OSError when the disk is full.
        """
        order: Literal["C", "F"] = "F" if self.hu.flags.f_contiguous else "C"
        with tempfile.TemporaryFile(dir=folder) as file:
            (self.hu.T if order == "F" else self.hu).tofile(file)
            hu = np.memmap(file, self.hu.dtype, mode="r", shape=self.hu.shape, order=order)
        return replace(self, hu=hu.view(np.ndarray))
