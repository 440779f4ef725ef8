"""Images and label maps of a case, from NIfTI, DICOM slices or PNG slices, on the image's grid turned to the closest
RAS.

An oblique scan keeps its rotation: axes are exchanged and reversed, never turned, as the service does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from PIL import Image
from pydicom.errors import InvalidDicomError

from training.datasets.description import DatasetDescription
from training.datasets.errors import (
    CaseError,
    GridMismatch,
    MissingLabel,
    NotAVolume,
    NotHounsfield,
    SeveralFiles,
    UnevenSlices,
    UnknownLabelValue,
    UnreadableFile,
)
from training.datasets.layout import CaseFiles, natural_key

LEAST_SLICES = 8
_SPACING_MM = (0.1, 20.0)  # of a CT, per axis
_UNEVEN = 0.02  # of the slice distance
_PLACE = 0.5  # voxels by which a label map may lie beside its image
_AIR_BELOW = -200  # HU: every CT has a voxel darker than this

Int16 = NDArray[np.int16]
Affine = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scan:
    """An image as its files hold it, and where it lies.

    `hu` int16 (I,J,K) in file order; `affine` maps its voxels to RAS mm; `slice_names` are the files of a slice-wise
    image along K.
    """

    hu: Int16
    affine: Affine
    slice_names: tuple[str, ...] = ()

    def turned(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """An array (I,J,K) of this grid along the axes that are the closest to RAS."""
        turned: NDArray[np.generic] = apply_orientation(array, io_orientation(self.affine))  # type: ignore[no-untyped-call]
        return turned

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along the axes closest to R, A and S."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        axes = io_orientation(self.affine)[:, 0].astype(int)  # type: ignore[no-untyped-call]
        x, y, z = (float(sizes[np.flatnonzero(axes == a)[0]]) for a in range(3))
        return x, y, z


def read_scan(files: Sequence[Path]) -> Scan:
    """The image of a case: one NIfTI file, or the slices of one DICOM series. Raises CaseError."""
    if len(files) == 1 and _is_nifti(files[0]):
        array, affine = _read_nifti(files[0])
        scan = Scan(_as_hu(array), affine)
    elif any(_is_nifti(path) for path in files):
        raise SeveralFiles(f"{len(files)} images: {', '.join(path.name for path in files[:3])}; one is needed.")
    else:
        scan = _read_series(files)
    _check_grid(scan)
    if int(scan.hu.min()) > _AIR_BELOW:
        raise NotHounsfield(
            f"The lowest value is {int(scan.hu.min())}; a CT in HU has air near -1000. Rescale the image to HU."
        )
    return scan


def read_values(files: CaseFiles, scan: Scan, description: DatasetDescription) -> NDArray[np.int16]:
    """The label map of a case (X,Y,Z), RAS. Raises CaseError."""
    if not files.labels:
        raise MissingLabel("There is no label file for this image.")
    if all(path.suffix.lower() == ".png" for path in files.labels):
        values = scan.turned(_stack(files.labels, scan, _read_png))
    elif len(files.labels) > 1:
        raise SeveralFiles(f"{len(files.labels)} label files: {', '.join(p.name for p in files.labels[:3])}.")
    else:
        values = _on_grid(files.labels[0], scan, same_voxels=description.same_voxels)
    whole = np.rint(values)
    if not np.array_equal(whole, values):
        raise UnknownLabelValue("The label map holds fractions; it must hold whole numbers.")
    checked: Int16 = whole.astype(np.int16)
    return checked


def read_structures(
    files: CaseFiles, scan: Scan, description: DatasetDescription
) -> dict[tuple[str, ...], NDArray[np.bool_]]:
    """Masks (X,Y,Z), RAS, by what they mean, of the mask files that the description names. Raises CaseError."""
    found: dict[tuple[str, ...], NDArray[np.bool_]] = {}
    for structure in dict.fromkeys(files.structures):
        names = description.names_of_structure(structure)
        if names is None:
            continue
        paths = [path for path, of in zip(files.labels, files.structures, strict=True) if of == structure]
        if len(paths) == 1 and _is_nifti(paths[0]):
            mask = _on_grid(paths[0], scan, same_voxels=description.same_voxels) != 0
        else:
            mask = scan.turned(_stack(paths, scan, _read_mask_slice)) != 0
        found[names] = found[names] | mask if names in found else mask
    if not found:
        raise MissingLabel("There is no mask of a structure that the description names.")
    return found


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _read_nifti(path: Path) -> tuple[NDArray[np.generic], Affine]:
    try:
        image = nibabel.Nifti1Image.from_filename(path)
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, zlib and gzip raise many types for a broken file
        raise UnreadableFile(f"{path.name} is not a readable NIfTI file: {type(error).__name__}.") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise NotAVolume(f"{path.name} has {array.ndim} axes; 3 are needed.")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise NotAVolume(f"{path.name} has no usable orientation.")
    return array, affine


def _as_hu(array: NDArray[np.generic]) -> Int16:
    """Rounded to int16. Raises NotHounsfield for values that are not finite."""
    if array.dtype.kind not in "iuf":
        raise NotHounsfield(f"Values of type {array.dtype} are not HU.")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise NotHounsfield("The image holds values that are not finite.")
        array = np.rint(array)
    limits = np.iinfo(np.int16)
    hu: Int16 = np.clip(array, limits.min, limits.max).astype(np.int16)
    return hu


def _check_grid(scan: Scan) -> None:
    if min(scan.hu.shape) < LEAST_SLICES:
        raise NotAVolume(
            f"The image has {min(scan.hu.shape)} slices along one axis; at least {LEAST_SLICES} are needed."
        )
    low, high = _SPACING_MM
    if not all(low <= size <= high for size in scan.spacing_mm):
        sizes = " x ".join(f"{size:.3g}" for size in scan.spacing_mm)
        raise NotAVolume(f"The voxel size {sizes} mm is not that of a CT.")


def _read_series(files: Sequence[Path]) -> Scan:
    """CT slices, sorted along their normal."""
    slices: list[tuple[Path, pydicom.Dataset]] = []
    for path in files:
        try:
            dataset = pydicom.dcmread(path)
        except (InvalidDicomError, OSError, ValueError) as error:
            raise UnreadableFile(f"{path.name} is not a readable DICOM file: {type(error).__name__}.") from error
        if dataset.get("Modality", "CT") == "CT" and "PixelSpacing" in dataset and "ImagePositionPatient" in dataset:
            slices.append((path, dataset))
    if len({dataset.get("SeriesInstanceUID") for _, dataset in slices}) > 1:
        raise SeveralFiles("The folder holds several DICOM series; keep the one that was labelled.")
    if len(slices) < LEAST_SLICES:
        raise NotAVolume(f"The folder holds {len(slices)} CT slices; at least {LEAST_SLICES} are needed.")
    try:
        return _stacked_series(slices)
    except CaseError:
        raise
    except Exception as error:  # pydicom's decoders raise many types for broken pixel data
        raise UnreadableFile(f"The DICOM slices cannot be decoded: {type(error).__name__}.") from error


def _stacked_series(slices: list[tuple[Path, pydicom.Dataset]]) -> Scan:
    first = slices[0][1]
    orientation = np.array(first.ImageOrientationPatient, np.float64)
    row, column = orientation[:3], orientation[3:]
    normal = np.cross(row, column)
    place = np.array([np.array(dataset.ImagePositionPatient, np.float64) for _, dataset in slices])
    order = np.argsort(place @ normal)
    heights = (place @ normal)[order]
    steps = np.diff(heights)
    step = float(np.median(steps))
    if step <= 0 or np.abs(steps - step).max() > max(_UNEVEN * step, 0.01):
        raise UnevenSlices(f"Slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; some are missing or doubled.")
    drift = place[order] - place[order][0] - np.outer(heights - heights[0], normal)
    if np.abs(drift).max() > 1.0:
        raise UnevenSlices("The slices are shifted against each other, as by a tilted gantry.")
    hu = np.stack([_slice_hu(slices[index][1]).T for index in order], axis=2)
    down, across = (float(size) for size in first.PixelSpacing)  # between rows, between columns
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * across, column * down, normal * step
    affine[:3, 3] = place[order][0]
    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Scan(_as_hu(hu), lps_to_ras @ affine, tuple(slices[index][0].name for index in order))


def _slice_hu(dataset: pydicom.Dataset) -> NDArray[np.float32]:
    slope, intercept = float(dataset.get("RescaleSlope", 1.0)), float(dataset.get("RescaleIntercept", 0.0))
    return dataset.pixel_array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _on_grid(path: Path, scan: Scan, *, same_voxels: bool) -> NDArray[np.generic]:
    """A label NIfTI on the scan's grid, along its axes closest to RAS."""
    array, affine = _read_nifti(path)
    if same_voxels:
        if array.shape != scan.hu.shape:
            raise GridMismatch(f"The labels have {array.shape} voxels, the image {scan.hu.shape}.")
        return scan.turned(array)
    labels = Scan(np.empty((0, 0, 0), np.int16), affine)
    turned, own = labels.turned(array), scan.turned(scan.hu)
    if turned.shape != own.shape:
        raise GridMismatch(f"The labels have {turned.shape} voxels, the image {own.shape}.")
    corners = np.array([[0, 0, 0], np.array(turned.shape) - 1])
    apart = [
        (_turned_affine(affine, array.shape) @ np.append(corner, 1.0))[:3]
        - (_turned_affine(scan.affine, scan.hu.shape) @ np.append(corner, 1.0))[:3]
        for corner in corners
    ]
    farthest = float(np.abs(np.array(apart) / np.array(scan.spacing_mm)).max())
    if farthest > _PLACE:
        raise GridMismatch(f"The labels lie {farthest:.1f} voxels beside the image.")
    return turned


def _turned_affine(affine: Affine, shape: tuple[int, ...]) -> Affine:
    inverse = nibabel.orientations.inv_ornt_aff(io_orientation(affine), shape)  # type: ignore[no-untyped-call]
    turned: Affine = affine @ inverse
    return turned


def _stack(paths: Sequence[Path], scan: Scan, read: Callable[[Path], NDArray[np.generic]]) -> NDArray[np.generic]:
    """Label slices (I,J,K) in the order of the image's: both kinds of files are numbered alike."""
    if len(paths) != len(scan.slice_names):
        raise GridMismatch(f"There are {len(paths)} label slices for {len(scan.slice_names)} image slices.")
    numbered = sorted(scan.slice_names, key=natural_key)
    label_of = dict(zip(numbered, sorted(paths, key=lambda path: natural_key(path.name)), strict=True))
    slices = [read(label_of[name]) for name in scan.slice_names]
    if any(one.shape != scan.hu.shape[1::-1] for one in slices):
        raise GridMismatch("The label slices have another size than the image's.")
    return np.stack([one.T for one in slices], axis=2)


def _read_png(path: Path) -> NDArray[np.generic]:
    try:
        with Image.open(path) as image:
            return (np.asarray(image.convert("L")) > 0).astype(np.int16)
    except Exception as error:  # Pillow raises many types for a broken file
        raise UnreadableFile(f"{path.name} is not a readable PNG file: {type(error).__name__}.") from error


def _read_mask_slice(path: Path) -> NDArray[np.generic]:
    try:
        return np.asarray(pydicom.dcmread(path).pixel_array)
    except Exception as error:  # pydicom and its decoders raise many types for a broken file
        raise UnreadableFile(f"{path.name} is not a readable DICOM file: {type(error).__name__}.") from error
