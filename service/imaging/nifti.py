"""A NIfTI file as a volume in HU.

The header is believed only within bounds: shape, type, scaling and geometry are checked before a voxel is read, and
exactly the bytes that the header promises are read, so neither a gzip bomb nor a short file costs more than its header.
"""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from service.errors import DecodeFailed, InvalidGeometry, UnreadableUpload, UnsupportedVolume, UploadTooLarge
from service.imaging.acceptance import check_size, checked_geometry, tilt_notices
from service.imaging.geometry import Affine, Geometry, Shape
from service.imaging.hounsfield import ValueRange, accept_hounsfield, input_sha256, to_int16
from service.imaging.limits import ReadLimits
from service.imaging.volume import Notice, SourceFormat, Volume

Header: TypeAlias = Any  # nibabel has no types

GZIP_MAGIC = b"\x1f\x8b"

# NIfTI-1 and NIfTI-2: header size, offset of the magic, and the magics of a single file and of a pair.
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540
_MAGIC_AT = {_NIFTI1_BYTES: 344, _NIFTI2_BYTES: 4}
_SINGLE_FILE = {_NIFTI1_BYTES: b"n+1\x00", _NIFTI2_BYTES: b"n+2\x00"}
_PAIR = {_NIFTI1_BYTES: b"ni1\x00", _NIFTI2_BYTES: b"ni2\x00"}

_SCALAR_TYPES = {
    f"{kind}{bits}"
    for kind, widths in {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (32, 64)}.items()
    for bits in widths
}

# Header extensions (free text, embedded DICOM headers) lie before the voxels; larger ones are no header any more.
_MAX_VOXEL_OFFSET = 64 * 1024**2

_CHUNK_VOXELS = 4 * 1024**2
_READ_ERRORS = (EOFError, OSError, zlib.error)

# xyzt_units, low three bits: 0 unknown (millimetres by custom), 1 metre, 2 millimetre, 3 micron.
_FOREIGN_UNITS = {1: "metres", 3: "microns"}


@dataclass(frozen=True)
class NiftiSeries:
    """One NIfTI file whose header has been read and found usable; the voxels are still on disk."""

    path: Path
    geometry: Geometry
    dtype: np.dtype[Any]
    scaling: tuple[float, float] | None  # slope, intercept
    voxel_offset: int
    notices: tuple[Notice, ...] = ()

    @property
    def slices(self) -> int:
        """Number of voxels along k."""
        return self.geometry.shape[2]


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is gzip."""
    return head.startswith(GZIP_MAGIC)


def is_nifti(head: bytes) -> bool:
    """Whether these first 540 (or 348) bytes of an uncompressed file are a NIfTI header of either version."""
    size = _header_size(head)
    return size is not None and head[_MAGIC_AT[size] :][:4] in (_SINGLE_FILE[size], _PAIR[size])


def read_nifti_header(path: Path, limits: ReadLimits) -> NiftiSeries:
    """The series of a .nii or .nii.gz file (the content decides, not the name).

    Raises:
        UnreadableUpload: not NIfTI, a damaged gzip, or the header of a .hdr/.img pair.
        UnsupportedVolume: not three-dimensional, or RGB, complex or bit voxels.
        TooFewSlices, UploadTooLarge: from the declared shape.
        InvalidGeometry: no, broken or sheared orientation, or not in millimetres.
    """
    try:
        with _open(path) as file:
            head = file.read(_NIFTI2_BYTES)
    except _READ_ERRORS as error:
        raise UnreadableUpload("The gzip file is damaged or cut short. Compress and send it again.") from error
    size = _header_size(head)
    if size is None or not is_nifti(head):
        raise UnreadableUpload("The file holds no NIfTI header. Send a .nii or .nii.gz file, a zip or DICOM files.")
    if head[_MAGIC_AT[size] :][:4] == _PAIR[size]:
        raise UnreadableUpload("The file is half of a .hdr/.img pair. Convert it to a single .nii or .nii.gz file.")
    header = _parse(head[:size])
    shape = _volume_shape(header)
    dtype = _scalar_dtype(header)
    check_size(shape, limits)
    affine, notices = _affine(header)
    geometry = checked_geometry(shape, affine)
    notices += tilt_notices(geometry)
    return NiftiSeries(path, geometry, dtype, _scaling(header), _voxel_offset(header, size), notices)


def read_nifti(series: NiftiSeries, progress: Callable[[float], None]) -> Volume:
    """The volume of a NIfTI series; `hu` is int16 with air at -1024 and above.

    Raises:
        DecodeFailed: fewer bytes than the header promises, or a damaged gzip.
        NotHounsfield: the values are not HU.
        UploadTooLarge: the volume does not fit in memory.
    """
    found = ValueRange()
    try:
        with _open(series.path) as file:
            _skip(file, series.voxel_offset)
            flat = _read_hu(file, series, found, progress)
            file.read(1)  # at the end of the stream gzip compares its checksum
    except _READ_ERRORS as error:
        raise DecodeFailed(
            "The NIfTI file ends before its last voxel, or its gzip data are damaged. Send it again."
        ) from error
    except MemoryError as error:
        raise UploadTooLarge("The volume does not fit in this machine's memory. Crop or resample it.") from error
    planes = flat.reshape(series.geometry.shape[::-1])  # (k, j, i): NIfTI stores i fastest
    notices = accept_hounsfield(planes, found)
    return Volume(
        hu=planes.T,
        geometry=series.geometry,
        source_format=SourceFormat.NIFTI,
        input_sha256=input_sha256(planes.T, series.geometry.affine),
        notices=series.notices + notices,
    )


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        head = file.read(2)
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip(head) else path.open("rb")


def _header_size(head: bytes) -> int | None:
    """348 or 540 from the first four bytes, in either byte order."""
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")} & _MAGIC_AT.keys()
    size = next(iter(sizes), None)
    return size if size is not None and len(head) >= size else None


def _parse(head: bytes) -> Any:  # noqa: ANN401 - nibabel publishes no types
    """The nibabel header of the first 348 or 540 bytes.

    Raises:
        UnreadableUpload: nibabel cannot make sense of it.
    """
    header_class = nib.Nifti1Header if len(head) == _NIFTI1_BYTES else nib.Nifti2Header
    try:
        return header_class.from_fileobj(BytesIO(head), check=False)  # type: ignore[no-untyped-call]  # nibabel has no types
    except (nib.spatialimages.HeaderDataError, ValueError, KeyError) as error:
        raise UnreadableUpload("The NIfTI header is damaged. Convert the scan again.") from error


def _volume_shape(header: Header) -> Shape:
    """The three-dimensional shape; further axes of length 1 are dropped.

    Raises:
        UnsupportedVolume: fewer or more dimensions, or an empty one.
    """
    dim = [int(n) for n in header["dim"]]
    axes = dim[1 : dim[0] + 1] if 1 <= dim[0] <= 7 else []
    if len(axes) < 3 or min(axes) < 1 or any(n != 1 for n in axes[3:]):
        size = " x ".join(str(n) for n in axes) or "unreadable"
        raise UnsupportedVolume(f"The image is {size}, not one three-dimensional volume. Send a single 3-D CT.")
    return axes[0], axes[1], axes[2]


def _scalar_dtype(header: Header) -> np.dtype[Any]:
    """The voxel type on disk, in its byte order.

    Raises:
        UnsupportedVolume: RGB, complex, bits or an unknown code.
    """
    code = int(header["datatype"])
    try:
        dtype: np.dtype[Any] = np.dtype(header.get_data_dtype())
    except (nib.spatialimages.HeaderDataError, KeyError) as error:
        raise UnsupportedVolume(f"The voxel type (NIfTI code {code}) is unknown. Save the CT as int16.") from error
    if dtype.newbyteorder("=").name not in _SCALAR_TYPES:
        raise UnsupportedVolume(
            f"The voxel type is {nib.nifti1.data_type_codes.label[code]}; one number per voxel is needed."
            " Save the CT as int16."
        )
    return dtype


def _affine(header: Header) -> tuple[Affine, tuple[Notice, ...]]:
    """Voxel index to RAS mm: the sform where its code is set, else the qform.

    Raises:
        InvalidGeometry: both codes are 0, the quaternion is not one, or the units are not millimetres.
    """
    units = _FOREIGN_UNITS.get(int(header["xyzt_units"]) & 0x7)
    if units:
        raise InvalidGeometry(f"The header states its geometry in {units}. Write it in millimetres.")
    sform = np.asarray(header.get_sform(), dtype=np.float64) if int(header["sform_code"]) > 0 else None
    qform = None
    if int(header["qform_code"]) > 0:
        try:
            qform = np.asarray(header.get_qform(), dtype=np.float64)
        except (nib.spatialimages.HeaderDataError, ValueError, ArithmeticError) as error:
            if sform is None:
                raise InvalidGeometry("The qform quaternion is not a rotation. Convert the scan again.") from error
    if sform is None:
        if qform is None:
            raise InvalidGeometry(
                "sform_code and qform_code are both 0, so left, right, front and back are unknown."
                " Convert the scan from DICOM again, for example with dcm2niix."
            )
        return qform, ()
    if qform is not None and not _same_grid(sform, qform):
        return sform, (Notice("sform-qform-differ", "sform and qform of the NIfTI header differ; sform was used."),)
    return sform, ()


def _same_grid(sform: Affine, qform: Affine) -> bool:
    """Whether both place the voxels of a typical scan within about a millimetre of each other."""
    directions_agree = np.allclose(sform[:3, :3], qform[:3, :3], rtol=0.0, atol=2e-3)
    return directions_agree and np.allclose(sform[:3, 3], qform[:3, 3], rtol=0.0, atol=1.0)


def _scaling(header: Header) -> tuple[float, float] | None:
    """scl_slope and scl_inter, or None where the header asks for no scaling (slope 0 or not finite)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return None
    scaling = (slope, intercept if np.isfinite(intercept) else 0.0)
    return None if scaling == (1.0, 0.0) else scaling


def _voxel_offset(header: Header, header_bytes: int) -> int:
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not header_bytes <= offset <= _MAX_VOXEL_OFFSET:
        raise UnreadableUpload(f"The NIfTI header puts the voxels at byte {offset:g}. Convert the scan again.")
    return int(offset)


def _skip(file: IO[bytes], count: int) -> None:
    if len(file.read(count)) != count:
        raise EOFError


def _read_hu(
    file: IO[bytes], series: NiftiSeries, found: ValueRange, progress: Callable[[float], None]
) -> NDArray[np.int16]:
    """All voxels in file order (i fastest), scaled, rounded to int16; widens `found` by the exact values."""
    total = int(np.prod(series.geometry.shape, dtype=np.int64))
    flat = np.empty(total, dtype=np.int16)
    for start in range(0, total, _CHUNK_VOXELS):
        count = min(_CHUNK_VOXELS, total - start)
        raw = file.read(count * series.dtype.itemsize)
        if len(raw) != count * series.dtype.itemsize:
            raise EOFError
        values: NDArray[Any] = np.frombuffer(raw, dtype=series.dtype).astype(series.dtype.newbyteorder("="))
        if series.scaling is not None:
            slope, intercept = series.scaling
            with np.errstate(over="ignore", invalid="ignore"):  # a mad slope gives infinities, which are refused
                values = values.astype(np.float64) * slope + intercept
        found.include(values)
        flat[start : start + count] = to_int16(values)
        progress((start + count) / total)
    return flat
