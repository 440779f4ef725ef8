"""DICOM files recompressed with lossless JPEG, which pydicom cannot write."""

from pathlib import Path

import gdcm
import pydicom
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

_SYNTAXES = {
    JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14,
    JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
}


def recompress(path: Path, syntax: str) -> None:
    """The same file in JPEG lossless, in place.

    Only the pixels are GDCM's: it moves the frames of a multi-frame object to places of its own.
    """
    original = pydicom.dcmread(path)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(_SYNTAXES[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    original.PixelData = pydicom.dcmread(path).PixelData
    original.file_meta.TransferSyntaxUID = syntax
    original.save_as(path)
