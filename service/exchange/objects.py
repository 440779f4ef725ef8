"""The DICOM objects of a result as they go over the network.

Files are deflated as a whole, which few receivers can read; they are sent as Explicit VR Little Endian, the transfer
syntax that DICOMweb takes for granted.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from service.imaging.dicom_files import quiet_pydicom
from service.reporting.outputs import DICOM_FOLDER


@dataclass(frozen=True)
class ResultObject:
    """One file of a result's `dicom` folder."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the artifact."""
        return f"{DICOM_FOLDER}/{self.path.name}"

    def encoded(self) -> bytes:
        """The bytes of a file (PS3.10) that holds the object as Explicit VR Little Endian."""
        buffer = BytesIO()
        with quiet_pydicom():
            dataset = pydicom.dcmread(self.path)
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            dataset.save_as(buffer, enforce_file_format=True, implicit_vr=False, little_endian=True)
        return buffer.getvalue()

    def dataset(self) -> Dataset:
        """The object as read from those bytes."""
        with quiet_pydicom():
            return pydicom.dcmread(BytesIO(self.encoded()))


def result_objects(result: Path) -> tuple[ResultObject, ...]:
    """The DICOM objects in the folder of a result, SEG before the SR that refers to it."""
    folder = result / DICOM_FOLDER
    names = sorted(folder.glob("*.dcm"), key=lambda path: (path.name == "sr.dcm", path.name)) if folder.is_dir() else []
    return tuple(ResultObject(path) for path in names)
