"""A downloaded dataset to cases of a store: `harmonize` reads top to bottom, `harmonize_case` is one case.

Images are turned to the closest RAS, brought to the recipe's spacing and cropped to the patient; labels become bits of
the label table with a mask of those that were annotated. What is there already is not done again.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.config import ModelConfig
from training.datasets.description import DatasetDescription
from training.datasets.errors import AmbiguousLabelOrder, CaseError, UnknownLabelValue
from training.datasets.labelling import Masks, label_bits, masks_of_values, supervised_bits
from training.datasets.layout import CaseFiles, find_cases
from training.datasets.published_names import check_published_names
from training.datasets.quality import choose_order, implausible
from training.datasets.reading import Scan, read_scan, read_structures, read_values
from training.datasets.resampling import Spacing, resample_hu, resample_labels
from training.detection import bounding_box
from training.label_table import STANDARD, LabelMap, LabelTable, has_label, table_with, write_store_table
from training.phantom.tissues import Tissue
from training.pools import process_pool
from training.store import encode_case, has_case, read_source, write_case

_ORDER_CASES = 5  # read to tell which label order a dataset has


@dataclass(frozen=True)
class Grid:
    """How cases lie in a store: voxel size, and the HU above which a voxel belongs to the patient (None: no crop)."""

    spacing_mm: Spacing
    foreground_above_hu: float | None

    @classmethod
    def of(cls, config: ModelConfig) -> "Grid":
        """That of a recipe's network."""
        return cls(config.spacing_mm, config.foreground_above_hu)


@dataclass(frozen=True)
class ScanSource:
    """What a store notes of a scan. JSON-ready.

    `fingerprint` is the same for the same image in another dataset, however its axes lie. `volumes_ml` are of the
    original grid and hold every annotated label, with 0 where the scan does not show it; `cut` are those that touch
    the border. `supervised` are annotated labels, `pseudo` those that a model filled in (`training.pseudo`).
    """

    dataset: str
    case: str
    patient: str
    fingerprint: str
    role: str
    grid: dict[str, Any]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    supervised: tuple[str, ...] = ()
    volumes_ml: dict[str, float] = field(default_factory=dict)
    cut: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    pseudo: tuple[str, ...] = ()

    @classmethod
    def read(cls, store: Path, name: str) -> "ScanSource":
        """That of a scan of a store. Raises FileNotFoundError."""
        noted: dict[str, Any] = read_source(store, name)
        lists = {key: tuple(value) for key, value in noted.items() if isinstance(value, list)}
        return cls(**(noted | lists))


@dataclass(frozen=True)
class Outcome:
    """What became of one case: written, there already, left out for a reason of the description, or refused."""

    case: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class LabelledScan:
    """A case as its files hold it, along RAS axes: HU int16 and label bits (X,Y,Z)."""

    hu: NDArray[np.int16]
    bits: LabelMap
    supervised: int
    spacing_mm: Spacing
    scan: Scan


def harmonize(
    folder: Path,
    description: DatasetDescription,
    store: Path,
    grid: Grid,
    *,
    order: str | None = None,
    processes: int | None = None,
    table: LabelTable = STANDARD,
) -> list[Outcome]:
    """Writes the cases of a downloaded dataset into the store; safe to interrupt and call again.

    A case that cannot be used is reported and the others go on. `order` names the label order of a dataset that has
    several; else volumes decide. `processes` work at a time; None: one per core. Labels of `table` join those of the
    store.
    Raises NoCases, AmbiguousLabelOrder, InvalidDescription, OtherLabels.
    """
    cases = find_cases(folder, description)
    description = with_order(description, cases, order)
    check_published_names(folder, description.values)
    store.mkdir(parents=True, exist_ok=True)
    table = table_with(store, table)
    write_store_table(store, table)
    outcomes = []
    missing = []
    for files in cases:
        if reason := description.reason_to_exclude(files.case):
            outcomes.append(Outcome(files.case, "excluded", reason))
        elif has_case(store, case_name(description, files.case)):
            outcomes.append(_of_present(store, description, files, grid))
        else:
            missing.append(files)
    write = partial(harmonize_case, description=description, store=store, grid=grid, table=table)
    for outcome in track(_each(write, missing, processes), total=len(missing), description=description.name):
        outcomes.append(outcome)
    position = {files.case: number for number, files in enumerate(cases)}
    return sorted(outcomes, key=lambda outcome: position[outcome.case])


def _each(
    write: Callable[[CaseFiles], Outcome], cases: Sequence[CaseFiles], processes: int | None
) -> Iterator[Outcome]:
    """Outcomes as they come, of this process or of several."""
    if processes == 1 or len(cases) < 2:
        yield from map(write, cases)
        return
    with process_pool(processes) as pool:
        for job in as_completed([pool.submit(write, files) for files in cases]):
            yield job.result()


def harmonize_case(
    files: CaseFiles, description: DatasetDescription, store: Path, grid: Grid, table: LabelTable = STANDARD
) -> Outcome:
    """Writes one case, or says why not."""
    try:
        labelled = read_labelled_scan(files, description, table)
        source = describe(files, description, labelled, grid, table)
        hu = resample_hu(labelled.hu, labelled.spacing_mm, grid.spacing_mm)
        bits = resample_labels(labelled.bits, labelled.spacing_mm, grid.spacing_mm)
        if grid.foreground_above_hu is not None and (inside := hu > grid.foreground_above_hu).any():
            box = bounding_box(inside)
            hu, bits = hu[box], bits[box]
        if bits.all():
            raise UnknownLabelValue("Every voxel of the patient is labelled; a label map has background.")
        name = case_name(description, files.case)
        rng = np.random.default_rng(int(source.fingerprint[:16], 16))
        tissue = np.full(hu.shape, Tissue.AIR, np.uint8)
        case = encode_case(tissue, bits, rng, supervised=labelled.supervised, hu=np.ascontiguousarray(hu))
        write_case(store, name, case, source=asdict(source))
    except CaseError as error:
        return Outcome(files.case, type(error).__name__, str(error))
    except MemoryError:
        return Outcome(files.case, "OutOfMemory", "The image does not fit into memory; use fewer processes.")
    return Outcome(files.case, "written")


def read_labelled_scan(files: CaseFiles, description: DatasetDescription, table: LabelTable = STANDARD) -> LabelledScan:
    """A case on its own grid, with our labels. Raises CaseError."""
    scan = read_scan(files.images)
    hu = np.ascontiguousarray(scan.turned(scan.hu)).astype(np.int16, copy=False)
    masks = _masks(files, scan, description)
    supervised = supervised_bits(description, files.case, masks, table)
    return LabelledScan(hu, label_bits(masks, hu, table), supervised, scan.spacing_mm, scan)


def describe(
    files: CaseFiles,
    description: DatasetDescription,
    labelled: LabelledScan,
    grid: Grid,
    table: LabelTable = STANDARD,
) -> ScanSource:
    """What the store notes of a case."""
    voxel_ml = float(np.prod(labelled.spacing_mm)) / 1000.0
    volumes, cut, remarks = {}, [], []
    supervised = [label for label in table.labels if labelled.supervised >> label.channel & 1]
    for label in supervised:
        mask = has_label(labelled.bits, label)
        volumes[label.name] = round(float(np.count_nonzero(mask) * voxel_ml), 3)
        if any(face.any() for axis in range(3) for face in (mask.take(0, axis), mask.take(-1, axis))):
            cut.append(label.name)
        if remark := implausible(label.name, volumes[label.name], cut=label.name in cut):
            remarks.append(remark)
    return ScanSource(
        dataset=description.name,
        case=files.case,
        patient=description.patient_of(files.case),
        fingerprint=fingerprint(labelled.hu),
        role=description.role.value,
        grid=asdict(grid),
        shape=labelled.hu.shape,
        spacing_mm=labelled.spacing_mm,
        supervised=tuple(label.name for label in supervised),
        volumes_ml=volumes,
        cut=tuple(cut),
        remarks=tuple(remarks),
    )


def case_name(description: DatasetDescription, case: str) -> str:
    """The name of a case in a store."""
    return f"{description.name}-{case}"


def fingerprint(hu: NDArray[np.int16]) -> str:
    """SHA-256 of an image's sorted shape and of how often it has each HU: the same for any order of its axes.

    What lies below -1000 HU is padding, which datasets fill differently, and counts as one value.
    """
    counts = np.bincount(np.clip(hu, -1000, 3071).astype(np.int32).ravel() + 1000, minlength=4072)
    return hashlib.sha256(repr(sorted(hu.shape)).encode() + counts.astype("<i8").tobytes()).hexdigest()


def with_order(description: DatasetDescription, cases: list[CaseFiles], order: str | None) -> DatasetDescription:
    """The description with the one label order that the folder has. Raises AmbiguousLabelOrder, CaseError."""
    if not description.orders:
        return description
    if order is None:
        order = choose_order(description.orders, _value_volumes(cases, description))
    if order not in description.orders:
        known = ", ".join(description.orders)
        raise AmbiguousLabelOrder(f"{description.name} has no label order {order!r}; known: {known}.")
    return description.model_copy(update={"values": description.orders[order], "orders": {}})


def _value_volumes(cases: list[CaseFiles], description: DatasetDescription) -> list[Mapping[int, float]]:
    """Millilitres by label value of the first cases that can be read."""
    volumes: list[Mapping[int, float]] = []
    for files in cases:
        if len(volumes) == _ORDER_CASES:
            break
        try:
            scan = read_scan(files.images)
            values = read_values(files, scan, description)
        except CaseError:
            continue
        voxel_ml = float(np.prod(scan.spacing_mm)) / 1000.0
        found, counts = np.unique(values, return_counts=True)
        pairs = zip(found, counts, strict=True)
        volumes.append(
            {
                int(value): float(count) * voxel_ml
                for value, count in pairs
                if value and value not in description.ignored
            }
        )
    return volumes


def _masks(files: CaseFiles, scan: Scan, description: DatasetDescription) -> Masks:
    if description.structures:
        return read_structures(files, scan, description)
    if description.label is None:
        return {}
    return masks_of_values(read_values(files, scan, description), description.values, description.ignored)


def _of_present(store: Path, description: DatasetDescription, files: CaseFiles, grid: Grid) -> Outcome:
    """A case that the store has: done, unless it lies on another grid."""
    source = ScanSource.read(store, case_name(description, files.case))
    if source.grid != {**asdict(grid), "spacing_mm": list(grid.spacing_mm)}:
        return Outcome(files.case, "OtherGrid", "The store has this case on another grid; use another store.")
    return Outcome(files.case, "present")
