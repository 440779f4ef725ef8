"""The files of a result.

    segmentation.nii.gz     label map on the source grid, value = label index, names and colours in its header
    masks/<label>.nii.gz    one binary mask per requested label; an empty one says "looked for, not found"
    findings.json           all measurements
    overview.png            three planes with coloured contours
    artifacts.json          this list, with media type, size and SHA-256 of each

Labels overlap and a label map cannot show it: organs are laid down first, lesions over them, and within each the larger
mask first, so that what lies inside a larger structure stays visible. Equal volumes: the bundle's order. The masks keep
everything.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter

from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.progress import Progress, Stage, no_progress
from service.reporting.nifti import label_map_slabs, mask_header, mask_slabs, write_nifti
from service.reporting.overview import draw_overview
from service.reporting.regions import Region, label_regions
from service.reporting.schema import Artifact, Findings

SEGMENTATION: Final = "segmentation.nii.gz"
FINDINGS: Final = "findings.json"
OVERVIEW: Final = "overview.png"
INDEX: Final = "artifacts.json"

_MEDIA_TYPES = {".gz": "application/gzip", ".json": "application/json", ".png": "image/png"}
_MAX_THREADS = 4  # the compressor and numpy let go of the interpreter; more threads only wait for memory

Index = TypeAdapter(tuple[Artifact, ...])


def mask_artifact(label_name: str) -> str:
    """Artifact name of one label's mask."""
    return f"masks/{label_name}.nii.gz"


def write_artifacts(
    out_dir: Path, volume: Volume, masks: Masks, findings: Findings, progress: Progress = no_progress
) -> tuple[Artifact, ...]:
    """Write every file of the result into `out_dir` and list them; artifacts.json is the list and is not in it.

    `out_dir` is the caller's scratch folder: a failure leaves it half written, so it is shown only when this returns.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    (out_dir / "masks").mkdir(parents=True, exist_ok=True)
    tasks = _tasks(out_dir, volume, masks, findings)
    with ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(task) for task in tasks.values()]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(Stage.WRITING, done / len(futures))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    artifacts = tuple(describe(out_dir, name) for name in tasks)
    (out_dir / INDEX).write_bytes(Index.dump_json(artifacts, indent=2) + b"\n")
    return artifacts


def describe(folder: Path, name: str) -> Artifact:
    """The entry of one written file in the index."""
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(name=name, media_type=_MEDIA_TYPES[path.suffix], bytes=path.stat().st_size, sha256=digest)


def _tasks(out_dir: Path, volume: Volume, masks: Masks, findings: Findings) -> dict[str, Callable[[], None]]:
    """What writes each artifact, by name, in the order of the index."""
    regions = label_regions(masks)
    tasks: dict[str, Callable[[], None]] = {
        SEGMENTATION: lambda: _write_label_map(out_dir / SEGMENTATION, masks, regions, findings),
        FINDINGS: lambda: _write_findings(out_dir / FINDINGS, findings),
        OVERVIEW: lambda: draw_overview(volume, masks, findings).save(out_dir / OVERVIEW),
    }
    for region in regions:
        name = mask_artifact(region.label.name)
        tasks[name] = _mask_task(out_dir / name, masks, region)
    return tasks


def _mask_task(path: Path, masks: Masks, region: Region) -> Callable[[], None]:
    header = mask_header(masks.geometry, np.uint8, description=region.label.name)
    return lambda: write_nifti(path, header, mask_slabs(masks, region))


def _write_label_map(path: Path, masks: Masks, regions: tuple[Region, ...], findings: Findings) -> None:
    dtype = np.uint8 if max(label.index for label in masks.labels) <= 255 else np.uint16
    header = mask_header(masks.geometry, dtype, description="label map", labels=masks.labels)
    write_nifti(path, header, label_map_slabs(masks, paint_order(regions, findings), dtype))


def paint_order(regions: tuple[Region, ...], findings: Findings) -> tuple[Region, ...]:
    """Regions from the bottom of the label map to its top: organs, then lesions; the larger below."""
    volume_ml = {organ.label: organ.volume_ml for organ in findings.organs}
    volume_ml |= {summary.label: summary.total_volume_ml for summary in findings.lesion_labels}
    return tuple(
        sorted(regions, key=lambda one: (one.label.kind.is_lesion, -volume_ml[one.label.name], one.bit)),
    )


def _write_findings(path: Path, findings: Findings) -> None:
    path.write_text(findings.model_dump_json(indent=2) + "\n", encoding="utf-8")
