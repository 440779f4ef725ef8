"""Small CT series written as DICOM files, for every test that needs one.

The geometry is written here from first principles (RAS affine -> LPS positions), apart from the reader under test.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CT_IMAGE_STORAGE = UID("1.2.840.10008.5.1.4.1.1.2")
INTERCEPT = -1024


def body_hu(shape: tuple[int, int, int] = (32, 28, 12), seed: int = 0) -> NDArray[np.int16]:
    """A noisy ellipsoid of soft tissue in air, with a bright off-centre mark that shows a flip; int16 HU (i, j, k)."""
    rng = np.random.default_rng(seed)
    centre = (np.array(shape) - 1) / 2
    grid = np.indices(shape).transpose(1, 2, 3, 0)
    inside = (((grid - centre) / (0.45 * np.array(shape))) ** 2).sum(axis=-1) < 1
    hu = np.where(inside, 40.0, -1000.0) + rng.normal(0, 12, shape)
    i, j, k = (n // 4 for n in shape)
    hu[i : i + 3, j : j + 2, k : k + 2] = 900
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def axial_affine(
    spacing_mm: tuple[float, float, float] = (1.5, 2.0, 3.0),
    origin_ras: tuple[float, float, float] = (20.0, 30.0, -50.0),
) -> NDArray[np.float64]:
    """RAS affine of an ordinary axial series: i towards the patient's left, j to posterior, k to superior."""
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = origin_ras
    return affine


def write_ct_series(
    folder: Path,
    hu_xyz: NDArray[np.int16] | None = None,
    affine_ras: NDArray[np.float64] | None = None,
    *,
    name: str = "image",
    transfer_syntax: UID = ExplicitVRLittleEndian,
    change: Callable[[Dataset, int], None] | None = None,
    **overrides: Any,
) -> list[Path]:
    """Write one CT image per k and return the files in the order of k.

    Args:
        folder: Created if absent.
        hu_xyz: int16 HU, indexed (i, j, k); i runs along a row of the image. Default: `body_hu()`.
        affine_ras: Voxel index to RAS mm. Default: `axial_affine()`.
        name: Files are called name-000, name-001, ...
        transfer_syntax: Uncompressed, or one that pydicom can encode here.
        change: Called with each dataset and its k before it is written, for what overrides cannot say.
        overrides: DICOM keyword -> value, or a function of k; None removes the element.
    """
    hu = body_hu() if hu_xyz is None else hu_xyz
    affine = axial_affine() if affine_ras is None else affine_ras
    common = _common(hu, affine)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(hu.shape[2]):
        dataset = _image(common, hu, affine, k)
        for keyword, value in overrides.items():
            value = value(k) if callable(value) else value
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        if change is not None:
            change(dataset, k)
        if transfer_syntax.is_compressed:
            dataset.compress(transfer_syntax, generate_instance_uid=False)
        path = folder / f"{name}-{k:03d}"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _common(hu: NDArray[np.int16], affine: NDArray[np.float64]) -> dict[str, Any]:
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]
    lengths = np.linalg.norm(lps, axis=0)
    return {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientID": "PHANTOM",
        "PatientName": "Phantom^Test",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series"]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]),
        "StudyID": "1",
        "StudyDate": "20240101",
        "StudyTime": "120000",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "PositionReferenceIndicator": "",
        "Manufacturer": "Viscera",
        "SeriesNumber": 2,
        "PatientPosition": "HFS",
        "Rows": hu.shape[1],
        "Columns": hu.shape[0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelSpacing": [_ds(lengths[1]), _ds(lengths[0])],
        "ImageOrientationPatient": [_ds(x) for x in (*(lps[:, 0] / lengths[0]), *(lps[:, 1] / lengths[1]))],
        "SliceThickness": _ds(lengths[2]),
        "RescaleIntercept": INTERCEPT,
        "RescaleSlope": 1,
        "RescaleType": "HU",
    }


def _image(common: dict[str, Any], hu: NDArray[np.int16], affine: NDArray[np.float64], k: int) -> Dataset:
    dataset = Dataset()
    for keyword, value in common.items():
        setattr(dataset, keyword, value)
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["instance", str(k)])
    dataset.InstanceNumber = k + 1
    right, anterior, superior = (affine @ [0, 0, k, 1])[:3]
    dataset.ImagePositionPatient = [_ds(-right), _ds(-anterior), _ds(superior)]
    stored = np.clip(hu[:, :, k].T.astype(np.int32) - INTERCEPT, -32768, 32767).astype("<i2")
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()  # rows run along j, so the image is the transpose
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _ds(number: float) -> str:
    """A decimal string of at most 16 characters."""
    return f"{number + 0.0:.9f}"[:16]
