"""From an upload to the one CT series in it, and to its volume.

    study = read_study(upload, scratch)
    volume = read_volume(select_ct_series(study))

The content of a file decides what it is, never its name. Messages name counts and values, never file names: those may
hold patient data, as identifiers do.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath

from service.errors import (
    DecodeFailed,
    EmptyUpload,
    InputError,
    MultiplePatients,
    SeriesNotFound,
    UnreadableUpload,
    UnsupportedModality,
    UnsupportedVolume,
    UploadTooLarge,
)
from service.imaging.archive import ExpansionBudget, extract_zip, is_litter, is_zip
from service.imaging.dicom import DicomImage, ObjectKind, is_dicom, read_dicom_images
from service.imaging.dicom_groups import group_images
from service.imaging.dicom_pixels import read_dicom
from service.imaging.dicom_stack import DicomSeries, stack_images
from service.imaging.limits import ReadLimits
from service.imaging.nifti import NiftiSeries, is_gzip, is_nifti, read_nifti, read_nifti_header
from service.imaging.selection import RefusedSeries, choose_series
from service.imaging.volume import Notice, Volume

__all__ = ["ReadLimits", "RefusedSeries", "Series", "Study", "read_study", "read_volume", "select_ct_series"]

Series = NiftiSeries | DicomSeries

# Enough for the magic of every format read here: the NIfTI-1 magic ends at byte 348.
_HEAD_BYTES = 540


class FileKind(StrEnum):
    """What a file is by its first bytes."""

    ZIP = "zip"
    NIFTI = "nifti"  #: NIfTI, or gzip (which is opened as NIfTI)
    DICOM = "dicom"
    EMPTY = "empty"  #: 0 bytes
    OTHER = "other"


@dataclass(frozen=True)
class Study:
    """What an upload holds: CT series whose headers are usable, those that are not, and what was passed over."""

    series: tuple[Series, ...]
    refused: tuple[RefusedSeries, ...] = ()
    notices: tuple[Notice, ...] = ()
    images: tuple[DicomImage, ...] = ()  #: all CT images and localizers, usable or not

    def images_of(self, series_uid: str) -> tuple[DicomImage, ...]:
        """The images of one series."""
        return tuple(image for image in self.images if image.series_uid == series_uid)


def read_study(upload: Path, scratch: Path, limits: ReadLimits | None = None) -> Study:
    """The study in an upload; headers are read, voxels are not.

    Args:
        upload: A .nii, .nii.gz or zip file, one DICOM file, or a folder tree of DICOM files, zips or one NIfTI.
        scratch: A folder for what zips expand to; kept until the volume is read, removed by the caller.
        limits: Bounds on files, bytes and voxels.

    Raises:
        EmptyUpload: nothing, or only 0-byte files.
        UnreadableUpload: no NIfTI, DICOM or zip among the files, or a damaged one.
        DecodeFailed: DICOM files whose headers are all damaged.
        UnsupportedModality: DICOM without a CT image.
        UnsupportedVolume: several NIfTI files, NIfTI beside DICOM, frames without a place, 4-D or colour voxels.
        InputError: any other of the tree; the header of a single NIfTI is checked here.
    """
    limits = limits or ReadLimits()
    files = _sort_files(upload, scratch, limits)
    if files[FileKind.NIFTI]:
        return _nifti_study(files, limits)
    if files[FileKind.DICOM]:
        return _dicom_study(files, limits)
    if files[FileKind.OTHER]:
        raise UnreadableUpload(
            f"None of the uploaded files ({len(files[FileKind.OTHER])}) is NIfTI, DICOM or zip, whatever their names"
            " say. Send one .nii or .nii.gz, one zip, or the DICOM files of a CT series."
        )
    raise EmptyUpload(
        "The upload holds only files of 0 bytes. Send them again."
        if files[FileKind.EMPTY]
        else "The upload holds no files. Send one .nii or .nii.gz, one zip, or the DICOM files of a CT series."
    )


def select_ct_series(study: Study, requested_uid: str | None = None) -> Series:
    """The series to segment, with the study's notices and the reason of the choice.

    Args:
        study: From `read_study`.
        requested_uid: SeriesInstanceUID of the caller's choice; None: the rule's (see `selection`).

    Raises:
        SeriesNotFound: the upload has no CT series of that UID.
        MultiplePatients: the series is to be chosen among those of more than one patient or study.
        InputError: no series is usable; the reason is that of the largest one.
    """
    nifti = [series for series in study.series if isinstance(series, NiftiSeries)]
    if nifti and requested_uid is not None:
        raise SeriesNotFound("A NIfTI file has no SeriesInstanceUID. Leave out 'series'.")
    if nifti:
        return replace(nifti[0], notices=study.notices + nifti[0].notices)
    stacks = [series for series in study.series if isinstance(series, DicomSeries)]
    images = study.images if requested_uid is None else study.images_of(requested_uid)
    _check_one_patient(images)
    if stacks:  # where none is usable, its own fault is the better answer
        _check_one_study(images)
    chosen, candidates, notices = choose_series(stacks, study.refused, requested_uid)
    return replace(chosen, notices=study.notices + notices + chosen.notices, candidates=candidates)


def read_volume(series: Series, progress: Callable[[float], None] = lambda _: None) -> Volume:
    """The voxels of a series in HU, with its geometry and notices.

    Args:
        series: From `select_ct_series`.
        progress: Called often with the fraction done; what it raises ends the reading.

    Raises:
        DecodeFailed: voxels missing or damaged.
        NotHounsfield: the values are not HU.
        UploadTooLarge: the volume does not fit in memory.
    """
    return read_nifti(series, progress) if isinstance(series, NiftiSeries) else read_dicom(series, progress)


def _sort_files(upload: Path, scratch: Path, limits: ReadLimits) -> dict[FileKind, list[Path]]:
    """Every file of the upload by its kind, zips replaced by what is in them."""
    budget = ExpansionBudget(limits)
    files: dict[FileKind, list[Path]] = {kind: [] for kind in FileKind}
    for path in _walk(upload):
        kind = _kind_of(path)
        if kind is FileKind.ZIP:
            into = scratch / f"archive-{len(files[FileKind.ZIP]):04d}"
            for extracted in extract_zip(path, into, limits, budget):
                files[_kind_of(extracted)].append(extracted)
        else:
            budget.add_file()
        files[kind].append(path)
    return files


def _walk(upload: Path) -> Iterator[Path]:
    """The files of a folder tree in a fixed order, without system litter; links to folders are not followed."""
    if not upload.is_dir():
        if not upload.is_file():
            raise EmptyUpload("There is no such file or folder to read.")
        yield upload
        return
    for folder, subfolders, names in os.walk(upload):
        subfolders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if path.is_file() and not is_litter(PurePosixPath(path.relative_to(upload).as_posix())):
                yield path


def _kind_of(path: Path) -> FileKind:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise UnreadableUpload("A file of the upload cannot be opened.") from error
    if not head:
        return FileKind.EMPTY
    if is_zip(head):
        return FileKind.ZIP
    if is_gzip(head) or is_nifti(head):
        return FileKind.NIFTI
    return FileKind.DICOM if is_dicom(head) else FileKind.OTHER


def _nifti_study(files: dict[FileKind, list[Path]], limits: ReadLimits) -> Study:
    paths = files[FileKind.NIFTI]
    if files[FileKind.DICOM]:
        raise UnsupportedVolume(
            f"The upload mixes NIfTI files ({len(paths)}) and DICOM files ({len(files[FileKind.DICOM])})."
            " Send one or the other."
        )
    if len(paths) > 1:
        raise UnsupportedVolume(f"The upload holds {len(paths)} NIfTI files. Send one CT volume.")
    return Study((read_nifti_header(paths[0], limits),), notices=_skipped_files(files))


def _dicom_study(files: dict[FileKind, list[Path]], limits: ReadLimits) -> Study:
    objects, damaged = _read_headers(files[FileKind.DICOM], limits)
    images = [image for image in objects if image.kind is ObjectKind.CT_IMAGE]
    if not images:
        raise _no_ct(objects)
    usable: list[Series] = []
    refused: list[RefusedSeries] = []
    for group in group_images(images):
        try:
            usable.append(stack_images(group, limits))
        except InputError as error:
            refused.append(RefusedSeries(group[0].series_uid, group[0].series_number, len(group), error))
    notices = _skipped_files(files) + _damaged_files(damaged) + _skipped_objects(objects)
    of_patient = tuple(image for image in objects if image.kind is not ObjectKind.OTHER)
    return Study(tuple(usable), tuple(refused), notices, of_patient)


def _read_headers(paths: list[Path], limits: ReadLimits) -> tuple[list[DicomImage], int]:
    """Every image and frame of the files, and the number of files that were too damaged to say what they are.

    Raises:
        DecodeFailed: all of them are damaged.
        UploadTooLarge: more frames than files are allowed.
    """
    images: list[DicomImage] = []
    failures: list[DecodeFailed] = []
    for path in paths:
        try:
            images.extend(read_dicom_images(path))
        except DecodeFailed as error:
            failures.append(error)
        if len(images) > limits.max_files:
            raise UploadTooLarge(
                f"The upload holds more than {limits.max_files} images, counting frames. Send only the CT series."
            )
    if not images:
        raise failures[0]
    return images, len(failures)


def _check_one_patient(images: Sequence[DicomImage]) -> None:
    """Refuse images of two patients; the identifiers themselves are not repeated.

    Raises:
        MultiplePatients: with their number.
    """
    if (patients := len({image.patient for image in images})) > 1:
        raise MultiplePatients(
            f"The CT images carry {patients} different patient identifiers."
            " Send one study of one patient, or name the series to segment."
        )


def _check_one_study(images: Sequence[DicomImage]) -> None:
    """Refuse images of two studies.

    Raises:
        MultiplePatients: with their number.
    """
    if (studies := len({image.study_uid for image in images})) > 1:
        raise MultiplePatients(
            f"The CT images carry {studies} different StudyInstanceUIDs."
            " Send one study of one patient, or name the series to segment."
        )


def _no_ct(objects: list[DicomImage]) -> InputError:
    """The reason why DICOM objects hold no CT image that can be placed."""
    kinds = Counter(item.kind for item in objects)
    if kinds[ObjectKind.MULTI_FRAME_CT]:
        return UnsupportedVolume(
            "The CT is a multi-frame object whose frames do not say where they lie (no per-frame functional groups)."
            " Send single-frame images, an Enhanced CT or NIfTI."
        )
    if kinds[ObjectKind.LOCALIZER]:
        return UnsupportedModality("The only CT images are localizers (scout views). Send the CT series itself.")
    modalities = ", ".join(sorted({item.modality for item in objects} - {""})) or "unknown"
    return UnsupportedModality(
        f"None of the {len(objects)} DICOM objects is a CT image; the modality is {modalities}. Send a CT series."
    )


def _skipped_files(files: dict[FileKind, list[Path]]) -> tuple[Notice, ...]:
    counts = ((len(files[FileKind.OTHER]), "neither DICOM nor NIfTI"), (len(files[FileKind.EMPTY]), "of 0 bytes"))
    return tuple(
        Notice("files-skipped", f"{count} {'file' if count == 1 else 'files'} {what} skipped.")
        for count, what in counts
        if count
    )


def _damaged_files(count: int) -> tuple[Notice, ...]:
    if not count:
        return ()
    files = "1 DICOM file has" if count == 1 else f"{count} DICOM files have"
    return (Notice("damaged-skipped", f"{files} a damaged header and could not be read; images may be missing."),)


def _skipped_objects(objects: list[DicomImage]) -> tuple[Notice, ...]:
    notices = []
    for kind, what in (
        (ObjectKind.OTHER, "DICOM objects that are no CT images"),
        (ObjectKind.LOCALIZER, "localizer images"),
        (ObjectKind.MULTI_FRAME_CT, "multi-frame CT objects without places"),
    ):
        skipped = [item for item in objects if item.kind is kind]
        if skipped:
            modalities = ", ".join(sorted({item.modality for item in skipped} - {""})) or "unknown modality"
            notices.append(Notice(f"{kind.value}-skipped", f"{len(skipped)} {what} ({modalities}) skipped."))
    return tuple(notices)
