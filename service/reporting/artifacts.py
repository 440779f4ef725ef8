"""The files of a result.

    segmentation.nii.gz     label map on the source grid, value = label index, names and colours in its header
    ct.nii.gz               the scan itself, if it is asked for
    masks/<label>.nii.gz    one binary mask per requested label; an empty one says "looked for, not found"
    findings.json           all measurements
    findings.csv            the same organs and lesions as rows
    overview.png, key_images/, report.html, report.pdf
                            what people look at: see `service.reporting.pictures`
    preview/                scan and label map on a coarse grid: see `service.reporting.preview`
    dicom/                  DICOM objects, for DICOM input: see `service.reporting.dicom.files`
    artifacts.json          this list, with media type, size and SHA-256 of each

Labels overlap and a label map cannot show it: organs are laid down first, lesions over them, and within each the larger
mask first, so that what lies inside a larger structure stays visible. Equal volumes: the bundle's order. The masks keep
everything.

Every mask is read back from its file and laid on the source grid; a voxel that differs fails the job.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import TypeAdapter

from service.imaging.dicom_files import quiet_pydicom
from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.progress import Progress, Stage, no_progress
from service.reporting.dicom.files import dicom_tasks
from service.reporting.nifti import label_map_slabs, mask_slabs, nifti_header, verify_nifti, write_nifti
from service.reporting.outputs import DICOM_FOLDER, NO_DICOM, OutputPlan, Task
from service.reporting.pictures import picture_tasks
from service.reporting.preview import CT as PREVIEW_CT
from service.reporting.preview import FOLDER as PREVIEW_FOLDER
from service.reporting.preview import LABELS as PREVIEW_LABELS
from service.reporting.preview import write_preview_ct, write_preview_labels
from service.reporting.regions import Region, label_regions
from service.reporting.scan import write_scan
from service.reporting.schema import Artifact, Findings
from service.reporting.table import write_table
from service.request import Output

SEGMENTATION: Final = "segmentation.nii.gz"
SCAN: Final = "ct.nii.gz"
FINDINGS: Final = "findings.json"
TABLE: Final = "findings.csv"
MASKS: Final = "masks"
INDEX: Final = "artifacts.json"

_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".dcm": "application/dicom",
    ".gz": "application/gzip",
    ".html": "text/html",
    ".json": "application/json",
    ".pdf": "application/pdf",
    ".png": "image/png",
}
_MAX_THREADS = 4  # the compressor and numpy let go of the interpreter; more threads only wait for memory

Index = TypeAdapter(tuple[Artifact, ...])


def mask_artifact(label_name: str) -> str:
    """Artifact name of one label's mask."""
    return f"{MASKS}/{label_name}.nii.gz"


def write_artifacts(
    out_dir: Path,
    volume: Volume,
    masks: Masks,
    findings: Findings,
    plan: OutputPlan = NO_DICOM,
    progress: Progress = no_progress,
    *,
    one_by_one: bool = False,
) -> tuple[Artifact, ...]:
    """Write every file of the plan into `out_dir` and list them; artifacts.json is the list and is not in it.

    `out_dir` is the caller's scratch folder: a failure leaves it half written, so it is shown only when this returns.
    `one_by_one` spares memory: no two files are written at once.

    Raises:
        VerificationFailed: a file, read back, is not the masks.
        OSError: the disk is full or cannot be written.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(out_dir, volume, masks, findings, plan)
    threads = 1 if one_by_one else min(_MAX_THREADS, os.cpu_count() or 1)
    with quiet_pydicom(), ThreadPoolExecutor(max_workers=threads) as pool:
        futures = [pool.submit(task) for _, task in sorted(tasks, key=_longest_first)]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(Stage.WRITING, done / len(futures))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    artifacts = tuple(describe(out_dir, name) for names, _ in tasks for name in names)
    (out_dir / INDEX).write_bytes(Index.dump_json(artifacts, indent=2) + b"\n")
    return artifacts


def describe(folder: Path, name: str) -> Artifact:
    """The entry of one written file in the index."""
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(name=name, media_type=_MEDIA_TYPES[path.suffix], bytes=path.stat().st_size, sha256=digest)


def _longest_first(task: Task) -> int:
    """DICOM objects take longest, then pictures: begun first, they run beside all the others."""
    names, _ = task
    return 0 if names[0].startswith(DICOM_FOLDER) else 1 if names[0].endswith((".png", ".html", ".pdf")) else 2


def _tasks(out_dir: Path, volume: Volume, masks: Masks, findings: Findings, plan: OutputPlan) -> list[Task]:
    """What writes the artifacts, with their names, in the order of the index."""
    regions = label_regions(masks)
    tasks: list[Task] = [((FINDINGS,), lambda: _write_findings(out_dir / FINDINGS, findings))]
    if Output.LABEL_MAP in plan.wanted:
        path = out_dir / SEGMENTATION
        tasks.insert(0, ((SEGMENTATION,), lambda: _write_label_map(path, masks, regions, findings)))
    if Output.SCAN in plan.wanted:
        tasks.append(((SCAN,), lambda: write_scan(out_dir / SCAN, volume.geometry, volume.hu, "CT, HU")))
    tasks += picture_tasks(out_dir, volume, masks, findings, plan)
    if Output.PREVIEW in plan.wanted:
        (out_dir / PREVIEW_FOLDER).mkdir(exist_ok=True)
        tasks += _preview_tasks(out_dir, volume, masks, regions, findings)
    if Output.MASKS in plan.wanted:
        (out_dir / MASKS).mkdir(exist_ok=True)
        for region in regions:
            name = mask_artifact(region.label.name)
            tasks.append(((name,), _mask_task(out_dir / name, masks, region)))
    if Output.CSV in plan.wanted:
        tasks.append(((TABLE,), lambda: write_table(out_dir / TABLE, findings)))
    return [*tasks, *dicom_tasks(out_dir, masks, findings, plan)]


def _mask_task(path: Path, masks: Masks, region: Region) -> Callable[[], None]:
    header = nifti_header(masks.geometry, np.uint8, description=region.label.name)

    def write() -> None:
        write_nifti(path, header, mask_slabs(masks.geometry, region))
        verify_nifti(path, masks.geometry, mask_slabs(masks.geometry, region))

    return write


def _preview_tasks(
    out_dir: Path, volume: Volume, masks: Masks, regions: tuple[Region, ...], findings: Findings
) -> list[Task]:
    def write_labels() -> None:
        write_preview_labels(out_dir / PREVIEW_LABELS, masks, paint_order(regions, findings), _label_map_dtype(masks))

    return [
        ((PREVIEW_CT,), lambda: write_preview_ct(out_dir / PREVIEW_CT, volume)),
        ((PREVIEW_LABELS,), write_labels),
    ]


def _label_map_dtype(masks: Masks) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if max(label.index for label in masks.labels) <= 255 else np.uint16


def _write_label_map(path: Path, masks: Masks, regions: tuple[Region, ...], findings: Findings) -> None:
    dtype = _label_map_dtype(masks)
    order = paint_order(regions, findings)
    header = nifti_header(masks.geometry, dtype, description="label map", labels=masks.labels)
    write_nifti(path, header, label_map_slabs(masks.geometry, order, dtype))
    verify_nifti(path, masks.geometry, label_map_slabs(masks.geometry, order, dtype))


def paint_order(regions: tuple[Region, ...], findings: Findings) -> tuple[Region, ...]:
    """Regions from the bottom of the label map to its top: organs, then lesions; the larger below."""
    volume_ml = {organ.label: organ.volume_ml for organ in findings.organs}
    volume_ml |= {summary.label: summary.total_volume_ml for summary in findings.lesion_labels}
    return tuple(
        sorted(regions, key=lambda one: (one.label.kind.is_lesion, -volume_ml[one.label.name])),
    )


def _write_findings(path: Path, findings: Findings) -> None:
    path.write_text(findings.model_dump_json(indent=2) + "\n", encoding="utf-8")
