"""A CT volume in Hounsfield units, with its geometry and its provenance."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import Geometry


class SourceFormat(StrEnum):
    """What the upload was."""

    NIFTI = "nifti"  #: one .nii or .nii.gz
    DICOM = "dicom"  #: a series of single-frame CT images


@dataclass(frozen=True)
class Notice:
    """Something the reader of the result should know: a stable code and a sentence, without patient data."""

    code: str
    message: str


@dataclass(frozen=True)
class Volume:
    """HU array with its geometry.

    `hu` is int16 or float32, shape == geometry.shape, indexed (i, j, k).
    `sop_instance_uids` (DICOM only) names the source image of each k; the k axis is then the slice axis.
    `input_sha256` identifies the decoded voxels and their geometry, whatever the packaging.
    """

    hu: NDArray[np.int16] | NDArray[np.float32]
    geometry: Geometry
    source_format: SourceFormat
    input_sha256: str
    sop_instance_uids: tuple[str, ...] | None = None
    notices: tuple[Notice, ...] = ()
