"""NIfTI-1 files of masks, streamed slab by slab: a mask is never unpacked as a whole.

A file carries the source grid (sform, and qform where it can). The label map has names and colours in its header, as a
Caret XML label table in two extensions with the same text: ecode 0 is where TotalSegmentator's files have it and its
users look (`header.extensions[0].get_content()`), ecode 30 is where Connectome Workbench looks.
The gzip stream has no time and no name in it: equal masks make equal files.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import DTypeLike, NDArray

from service.errors import VerificationFailed
from service.imaging.geometry import Geometry
from service.inference.manifest import Label
from service.reporting.regions import Region

LABEL_TABLE_ECODES: Final = (0, 30)
SCANNER_ANATOMICAL: Final = 1
"""sform_code and qform_code: coordinates of the scanner."""

# Neither library annotates its methods; Any says so once.
Header = Any  # nibabel.Nifti1Header
_Nifti1Header: Any = nib.Nifti1Header
_Nifti1Extension: Any = nib.nifti1.Nifti1Extension
_GzipFile: Any = igzip.IGzipFile

_COMPRESSION: Final = 1
_SLICES_PER_SLAB: Final = 16
_QFORM_TOLERANCE_MM: Final = 1e-3


def nifti_header(geometry: Geometry, dtype: DTypeLike, *, description: str, labels: Sequence[Label] = ()) -> Header:
    """Header of an image on the grid, with a label table when `labels` are given.

    The sform is the affine in float32, as NIfTI-1 stores it: an affine that was read from a NIfTI comes back unchanged.
    The qform says the same; it cannot hold a shear, and is then marked unknown (code 0) rather than wrong.
    """
    header = _Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.affine, code=SCANNER_ANATOMICAL)
    header.set_qform(geometry.affine, code=SCANNER_ANATOMICAL)
    if not _same_corners(header.get_qform(), geometry):
        header.set_qform(None, code=0)
        header.set_zooms(geometry.spacing_mm)
    header["descrip"] = description.encode("ascii")[:79]
    if labels:
        header.set_intent("label", name="Viscera labels")
        header.extensions += [_Nifti1Extension(ecode, label_table(labels)) for ecode in LABEL_TABLE_ECODES]
    return header


def _same_corners(qform: NDArray[np.float64], geometry: Geometry) -> bool:
    corners = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(geometry.shape) - 1)
    expected = geometry.to_ras_mm(corners)
    found = corners @ qform[:3, :3].T + qform[:3, 3]
    return bool(np.abs(found - expected).max() < _QFORM_TOLERANCE_MM * max(1.0, max(geometry.spacing_mm)))


def label_table(labels: Sequence[Label]) -> bytes:
    """The Caret XML label table: key = voxel value, colours 0 to 1, name as text."""
    rows = "\n".join(
        f'<Label Key="{label.index}" Red="{label.color[0] / 255:.4f}" Green="{label.color[1] / 255:.4f}" '
        f'Blue="{label.color[2] / 255:.4f}" Alpha="1">{escape(label.name)}</Label>'
        for label in labels
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension>\n<VolumeInformation Index="0">\n<LabelTable>\n'
        f"{rows}\n"
        "</LabelTable>\n<StudyMetaDataLinkSet></StudyMetaDataLinkSet>\n<VolumeType>Label</VolumeType>\n"
        "</VolumeInformation>\n</CaretExtension>\n"
    ).encode()


def write_nifti(path: Path, header: Header, slabs: Iterable[NDArray[np.generic]]) -> None:
    """Write a .nii.gz from slabs (i, j, some k) of the header's dtype, in order; deterministic bytes."""
    with (
        path.open("wb") as file,
        _GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=file, mtime=0) as stream,
    ):
        header.write_to(stream)
        for slab in slabs:
            stream.write(np.asfortranarray(slab).T.data)


def verify_nifti(path: Path, geometry: Geometry, slabs: Iterable[NDArray[np.generic]]) -> None:
    """The file, read back, lies on the grid and holds these slabs (i, j, some k), voxel for voxel.

    Raises:
        VerificationFailed: it does not.
    """
    image: Any = nib.load(path)
    same_place = np.allclose(image.affine, geometry.affine.astype(np.float32), rtol=1e-6, atol=1e-6)
    equal = image.shape == geometry.shape and same_place
    with _GzipFile(filename=str(path), mode="rb") as stream:
        stream.read(image.dataobj.offset if equal else 0)
        for slab in slabs:
            expected = np.asfortranarray(slab).ravel(order="F")
            read = stream.read(expected.nbytes) if equal else b""
            equal = len(read) == expected.nbytes and np.array_equal(np.frombuffer(read, slab.dtype), expected)
            if not equal:
                break
    if not equal:
        raise VerificationFailed(
            f"{path.name} was read back and is not the mask. The result was not published; tell the operator of the"
            " service."
        )


def mask_slabs(geometry: Geometry, region: Region) -> Iterator[NDArray[np.generic]]:
    """One label's mask as uint8 (0 or 1), slab by slab along k."""
    for depth in _slabs(geometry):
        slab = _empty_slab(geometry, depth, np.uint8)
        _paint(slab, 1, region, depth)
        yield slab


def label_map_slabs(geometry: Geometry, order: Sequence[Region], dtype: DTypeLike) -> Iterator[NDArray[np.generic]]:
    """The label map (value = label.index), slab by slab along k; later regions lie over earlier ones."""
    for depth in _slabs(geometry):
        slab = _empty_slab(geometry, depth, dtype)
        for region in order:
            _paint(slab, region.label.index, region, depth)
        yield slab


def _slabs(geometry: Geometry) -> Iterator[slice]:
    slices = geometry.shape[2]
    return (slice(first, min(first + _SLICES_PER_SLAB, slices)) for first in range(0, slices, _SLICES_PER_SLAB))


def _empty_slab(geometry: Geometry, depth: slice, dtype: DTypeLike) -> NDArray[np.generic]:
    return np.zeros((*geometry.shape[:2], depth.stop - depth.start), dtype=dtype, order="F")


def _paint(slab: NDArray[np.generic], value: int, region: Region, depth: slice) -> None:
    """Set the region's voxels of one slab to `value`."""
    if region.box is None:
        return
    i, j, k = region.box
    first, last = max(k.start, depth.start), min(k.stop, depth.stop)
    if first >= last:
        return
    marked = region.bits.read((i, j, slice(first, last)))
    slab[i, j, first - depth.start : last - depth.start][marked] = value
