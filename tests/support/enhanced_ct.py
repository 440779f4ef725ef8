"""A multi-frame CT (Enhanced or legacy converted) of any array, with its frames in any order."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

ENHANCED_CT = UID("1.2.840.10008.5.1.4.1.1.2.1")
LEGACY_CONVERTED_CT = UID("1.2.840.10008.5.1.4.1.1.2.2")


def write_enhanced_ct(
    path: Path,
    hu_xyz: NDArray[np.int16],
    affine_ras: NDArray[np.float64],
    *,
    sop_class: UID = ENHANCED_CT,
    order: Sequence[int] | None = None,
    slopes: Sequence[float] | None = None,
    transfer_syntax: UID = ExplicitVRLittleEndian,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """One object with a frame for each k of `order` (default: all, ascending); frame n is rescaled by slopes[n]."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine_ras[:3, :3]
    lengths = np.linalg.norm(lps, axis=0)
    frames = list(range(hu_xyz.shape[2])) if order is None else list(order)
    slopes = [1.0] * len(frames) if slopes is None else slopes
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid(entropy_srcs=["enhanced"])
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.PatientID, dataset.StudyInstanceUID = "PHANTOM", generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID, dataset.SeriesNumber = generate_uid(entropy_srcs=["series"]), 2
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = hu_xyz.shape[1], hu_xyz.shape[0], len(frames)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    measures = _item(PixelSpacing=[lengths[1], lengths[0]], SliceThickness=lengths[2])
    orientation = _item(ImageOrientationPatient=[*(lps[:, 0] / lengths[0]), *(lps[:, 1] / lengths[1])])
    reconstruction = _item(ConvolutionKernel="STANDARD")
    dataset.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[orientation],
            CTReconstructionSequence=[reconstruction],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=list([-1, -1, 1] * (affine_ras @ [0, 0, k, 1])[:3]))],
            PixelValueTransformationSequence=[_item(RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="HU")],
            FrameContentSequence=[_item(FrameAcquisitionNumber=1)],
        )
        for k, slope in zip(frames, slopes, strict=True)
    ]
    stored = [
        np.rint((hu_xyz[:, :, k].T.astype(float) + 1024) / slope).astype("<u2")
        for k, slope in zip(frames, slopes, strict=True)
    ]
    dataset.PixelData = np.stack(stored).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if change is not None:
        change(dataset)
    if transfer_syntax.is_compressed:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _item(**attributes: object) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item
