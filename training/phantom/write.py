"""Phantoms as files: NIfTI with one mask per label, and a DICOM CT series."""

import json
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from training.labels import LABELS
from training.phantom.phantom import Phantom

_RESCALE_INTERCEPT = -1024


def write_nifti(phantom: Phantom, folder: Path) -> Path:
    """Write ct.nii.gz, labels/<name>.nii.gz (each label, even if empty) and phantom.json; gives the CT's path."""
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    path = folder / "ct.nii.gz"
    write_ct(phantom, path)
    for label in LABELS:
        mask = ((phantom.labels >> np.uint32(label.channel)) & 1).astype(np.uint8)
        nib.save(_image(mask, phantom.affine), folder / "labels" / f"{label.name}.nii.gz")
    facts = {
        "seed": phantom.seed,
        "phase": phantom.phase.value,
        "spacing_mm": np.diag(phantom.affine)[:3].tolist(),
        "shape": list(phantom.hu.shape),
        "lesions": [asdict(lesion) for lesion in phantom.lesions],
    }
    (folder / "phantom.json").write_text(json.dumps(facts, indent=2) + "\n")
    return path


def write_ct(phantom: Phantom, path: Path) -> None:
    """Write the scan alone as NIfTI."""
    nib.save(_image(phantom.hu, phantom.affine), path)


def _image(array: NDArray[np.generic], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]  # nibabel has no annotations
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    image.set_sform(affine, 1)  # type: ignore[no-untyped-call]
    image.set_qform(affine, 1)  # type: ignore[no-untyped-call]
    return image


def write_dicom(phantom: Phantom, folder: Path) -> list[Path]:
    """Write one CT Image Storage file per axial slice, foot to head; returns their paths in that order.

    DICOM is LPS: x and y change sign, so pixel rows and columns run from the patient's right to left and front to back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = (phantom.hu[::-1, ::-1, :] - np.int16(_RESCALE_INTERCEPT)).astype(np.uint16)
    paths = []
    for index in range(stored.shape[2]):
        path = folder / f"slice_{index:04d}.dcm"
        dataset = _slice(phantom, index)
        dataset.PixelData = np.ascontiguousarray(stored[:, :, index].T).tobytes()
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _uid(phantom: Phantom, *what: str) -> UID:
    """A UID that depends on nothing but the phantom and what it names."""
    geometry = [*phantom.hu.shape, *np.round(phantom.affine, 4).ravel().tolist()]
    return generate_uid(entropy_srcs=["viscera phantom", str(phantom.seed), str(geometry), *what])


def _slice(phantom: Phantom, index: int) -> Dataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(phantom, "instance", str(index))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _describe(dataset, phantom)
    x_mm, y_mm, z_mm = (float(s) for s in np.diag(phantom.affine)[:3])
    columns, rows, _ = phantom.hu.shape
    right, front = phantom.affine[:2, 3] + phantom.affine[:2, :2].diagonal() * (columns - 1, rows - 1)
    height = float(phantom.affine[2, 3] + index * z_mm)
    dataset.InstanceNumber = index + 1
    dataset.ImagePositionPatient = [_decimal(-right), _decimal(-front), _decimal(height)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SliceLocation = _decimal(height)
    dataset.PixelSpacing = [_decimal(y_mm), _decimal(x_mm)]
    dataset.SliceThickness = _decimal(z_mm)
    dataset.SpacingBetweenSlices = _decimal(z_mm)
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = _RESCALE_INTERCEPT, 1, "HU"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    return dataset


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _describe(dataset: Dataset, phantom: Phantom) -> None:
    """Patient, study, series and equipment: fixed dates, so that the same phantom gives the same bytes."""
    dataset.PatientName = f"PHANTOM^{phantom.seed}"
    dataset.PatientID = f"PHANTOM-{phantom.seed}"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyInstanceUID = _uid(phantom, "study")
    dataset.SeriesInstanceUID = _uid(phantom, "series")
    dataset.FrameOfReferenceUID = _uid(phantom, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20240101"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", str(phantom.seed)
    dataset.StudyDescription = "Viscera procedural phantom"
    dataset.SeriesDescription = f"Phantom {phantom.phase.value}"
    dataset.SeriesNumber, dataset.AcquisitionNumber = 1, 1
    dataset.Modality, dataset.PatientPosition = "CT", "HFS"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    dataset.Manufacturer, dataset.ManufacturerModelName = "Viscera", "Procedural phantom"
    dataset.ConvolutionKernel, dataset.KVP = "PHANTOM", "120"
    dataset.BodyPartExamined = "TRUNK"
    if phantom.phase.value != "native":
        dataset.ContrastBolusAgent = "Simulated iodine"
