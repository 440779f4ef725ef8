"""Encapsulated PDF (PS3.3 A.45.1): the report of a result in the study of its source, for archives that show no HTML.

The PDF holds no name or id of the patient; those of the study are in the header, unless the object is de-identified.
"""

from pathlib import Path
from typing import Final

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from service.errors import VerificationFailed
from service.reporting.dicom.objects import MANUFACTURER, RESEARCH_USE, Authorship, instance_reference, new_uid

_SERIES_NUMBER: Final = 9105


def write_document(path: Path, authorship: Authorship, pdf: bytes) -> None:
    """Write the PDF as a DICOM object and read it back.

    Raises:
        VerificationFailed: what was read back is not the PDF.
        OSError: the disk is full or cannot be written.
    """
    authorship.save(_document(authorship, pdf), path, ExplicitVRLittleEndian)
    read = pydicom.dcmread(path)
    if bytes(read.EncapsulatedDocument[: read.EncapsulatedDocumentLength]) != pdf:
        raise VerificationFailed(
            f"{path.name} was read back and is not the report. The result was not published; tell the operator of the "
            "service."
        )


def _document(authorship: Authorship, pdf: bytes) -> Dataset:
    source, provenance = authorship.source, authorship.provenance
    created = provenance.created
    instances = {image.sop_instance_uid: image for image in source.images}  # the frames of one object are one instance
    dataset = authorship.study_dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.SOPClassUID = EncapsulatedPDFStorage
    dataset.SOPInstanceUID = new_uid()
    dataset.SeriesInstanceUID = new_uid()
    dataset.Modality = "DOC"
    dataset.SeriesNumber = _SERIES_NUMBER
    dataset.InstanceNumber = 1
    dataset.SeriesDescription = f"Viscera report. {RESEARCH_USE}"
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = provenance.bundle.name
    dataset.DeviceSerialNumber = provenance.bundle.sha256
    dataset.SoftwareVersions = [provenance.software_version, provenance.bundle.version]
    dataset.ConversionType = "WSD"  # made by a program (PS3.3 C.8.6.1)
    dataset.ContentDate = "" if created is None else created.strftime("%Y%m%d")
    dataset.ContentTime = "" if created is None else created.strftime("%H%M%S")
    dataset.AcquisitionDateTime = ""
    dataset.BurnedInAnnotation = "NO"
    dataset.DocumentTitle = f"Viscera report. {RESEARCH_USE}"
    dataset.ConceptNameCodeSequence = []  # a title of a clinical document would say too much
    dataset.SourceInstanceSequence = [instance_reference(image) for image in instances.values()]
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    dataset.EncapsulatedDocumentLength = len(pdf)
    return dataset
