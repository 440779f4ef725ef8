"""A CT series on the disk with masks put in by hand, and the DICOM objects that are written for it."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from service.imaging.study import read_study, read_volume, select_ct_series
from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.reporting.artifacts import write_artifacts
from service.reporting.findings import measure
from service.reporting.outputs import OutputPlan, plan_outputs
from service.reporting.schema import Findings
from service.request import Output, SegmentationRequest
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.reporting import PROVENANCE, box_mask, scan

#: 27 x 31 pixels: not a multiple of 8, so that single-bit frames do not begin at a byte.
SHAPE = (27, 31, 12)

DICOM = (Output.SEG, Output.SR, Output.RTSTRUCT, Output.ENCAPSULATED_PDF)


def painted(shape: tuple[int, int, int] = SHAPE) -> dict[str, NDArray[np.bool_]]:
    """Organs that overlap, one with a hole, and two tumours: inside the liver, across it; no symmetry anywhere."""
    liver = box_mask(shape, (2, 14), (3, 18), (2, 9))
    liver[6:9, 10:14, 3:8] = False
    return {
        "liver": liver,
        "vessel": box_mask(shape, (4, 7), (6, 9), (1, 12)),
        "kidney_left": box_mask(shape, (20, 27), (0, 9), (3, 5)) | box_mask(shape, (22, 23), (20, 21), (4, 5)),
        "liver_tumor": box_mask(shape, (3, 6), (4, 8), (3, 5)) | box_mask(shape, (13, 17), (15, 16), (7, 10)),
    }


@dataclass(frozen=True)
class Result:
    """What was read, what was put in, and the folder of what was written."""

    folder: Path
    series: list[Path]
    volume: Volume
    masks: Masks
    findings: Findings
    plan: OutputPlan

    def dataset(self, name: str) -> Dataset:
        """One written object."""
        return pydicom.dcmread(self.folder / "dicom" / name)


def write_result(
    folder: Path,
    *,
    affine: NDArray[np.float64] | None = None,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    outputs: tuple[Output, ...] | None = DICOM,
    change: Callable[[Dataset, int], None] | None = None,
    shown: bool = False,
    write: Callable[[Path], list[Path]] | None = None,
    **choices: object,
) -> Result:
    """Write a series, read it, put the masks in and write the outputs.

    Args:
        folder: An empty folder.
        affine: RAS affine of the series as it is written.
        masks: On the grid of the volume as it is read; `painted()` otherwise.
        shape: Of the series (i, j, k).
        outputs: As in a request.
        change: See `write_ct_series`.
        write: What writes the series in place of `write_ct_series`, into a folder that is not there yet.
        shown: Take the masks as they lie in the patient of the written series, whose slices reading may reverse.
        choices: Further fields of the request.
    """
    if write is None:
        hu, affine = body_hu(shape), axial_affine() if affine is None else affine
        written = write_ct_series(folder / "in", hu, affine, change=change)
    else:
        written = write(folder / "in")
    series = select_ct_series(read_study(folder / "in", folder))
    plan = plan_outputs(SegmentationRequest.model_validate({"outputs": outputs, **choices}), series)
    volume = plan.noted_on(read_volume(series))
    there = dict(painted(shape) if masks is None else masks)
    if shown and volume.sop_instance_uids != tuple(pydicom.dcmread(path).SOPInstanceUID for path in written):
        there = {name: mask[:, :, ::-1] for name, mask in there.items()}
    _, found = scan(volume.hu, there, volume.geometry.affine)
    findings = measure(volume, found, PROVENANCE)
    write_artifacts(folder / "out", volume, found, findings, plan)
    return Result(folder / "out", written, volume, found, findings, plan)


def complaints(path: Path) -> list[str]:
    """What dciodvfy (Debian package dicom3tools) calls an error in an object.

    It cannot inflate: a deflated object is given to it in the same encoding without compression.
    """
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    dataset = pydicom.dcmread(path)
    plain = path
    if dataset.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plain = path.with_suffix(".plain.dcm")
        dataset.save_as(plain, enforce_file_format=True)
    done = subprocess.run(["dciodvfy", "-new", str(plain)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
