"""What is evaluated on: scans with a truth, of a downloaded dataset or a store, as studies that the service reads."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from training.assembly import Split, open_assembly
from training.datasets.description import DatasetDescription
from training.datasets.errors import NoCases
from training.datasets.harmonize import ScanSource, read_labelled_scan, with_order
from training.datasets.layout import CaseFiles, find_cases
from training.label_table import STANDARD, LabelMap, LabelTable
from training.store import open_case


@dataclass(frozen=True)
class Truth:
    """A scan on its own grid along the axes closest to RAS: HU int16 and label bits (X,Y,Z).

    Bit c of `supervised` says whether channel c of the `table` was annotated.
    """

    hu: NDArray[np.int16]
    bits: LabelMap
    supervised: int
    spacing_mm: tuple[float, float, float]
    table: LabelTable = STANDARD


@dataclass(frozen=True)
class Subject:
    """One scan. `study` puts it below a folder as a study to segment and gives its path; `truth` reads the labels.

    Both raise CaseError for a case that cannot be used.
    """

    name: str
    patient: str
    study: Callable[[Path], Path]
    truth: Callable[[], Truth]


def subjects_of_dataset(
    folder: Path, description: DatasetDescription, *, order: str | None = None, table: LabelTable = STANDARD
) -> list[Subject]:
    """The cases of a downloaded dataset that are not excluded. Raises NoCases, AmbiguousLabelOrder."""
    cases = find_cases(folder, description)
    description = with_order(description, cases, order)
    return [
        Subject(
            files.case,
            description.patient_of(files.case),
            partial(_link, files),
            partial(_truth_of_case, files, description, table),
        )
        for files in cases
        if description.reason_to_exclude(files.case) is None
    ]


def subjects_of_store(store: Path, split: Split | None) -> list[Subject]:
    """The scans of a store, of one split or all, on the store's grid. Raises NoCases."""
    assembly = open_assembly(store)
    names = [name for name in assembly.scans if split is None or assembly.splits[name] is split]
    if not names:
        raise NoCases(f"{store.name} holds no scan of the split {split.name.lower() if split else 'any'}.")
    return [
        Subject(
            name,
            assembly.scans[name].patient,
            partial(write_scan, store, name, assembly.scans[name]),
            partial(_truth_of_scan, store, name, assembly.scans[name], assembly.table),
        )
        for name in names
    ]


def _link(files: CaseFiles, folder: Path) -> Path:
    """The case's images under the case's own name: the service names its results by the study."""
    suffix = ".nii.gz" if files.images[0].name.endswith(".gz") else ".nii"
    if len(files.images) == 1:
        study = folder / f"{files.case}{suffix}"
        _link_file(files.images[0], study)
        return study
    study = folder / files.case
    study.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(files.images):
        _link_file(image, study / f"{number:05d}.dcm")
    return study


def _link_file(source: Path, target: Path) -> None:
    """A hard link, or a copy on another disk: links to elsewhere are nothing a service should follow."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _truth_of_case(files: CaseFiles, description: DatasetDescription, table: LabelTable) -> Truth:
    labelled = read_labelled_scan(files, description, table)
    return Truth(labelled.hu, labelled.bits, labelled.supervised, labelled.spacing_mm, table)


def write_scan(store: Path, name: str, source: ScanSource, folder: Path) -> Path:
    """A scan of a store as a NIfTI file `folder`/<name>.nii.gz."""
    case = open_case(store, name)
    assert case.hu is not None
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / f"{name}.nii.gz"
    image = nibabel.Nifti1Image(np.asarray(case.hu), np.diag([*source.grid["spacing_mm"], 1.0]))  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    nibabel.save(image, study)
    return study


def _truth_of_scan(store: Path, name: str, source: ScanSource, table: LabelTable) -> Truth:
    case = open_case(store, name)
    assert case.hu is not None
    x, y, z = source.grid["spacing_mm"]
    annotated = table.bits(source.supervised)  # what a model filled in is no truth
    return Truth(case.hu, case.labels[case.codes], annotated, (x, y, z), table)
