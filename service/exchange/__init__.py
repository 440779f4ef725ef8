"""Studies from a PACS and results back to it: DICOMweb and the DICOM network."""
