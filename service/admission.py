"""Does a scan fit into memory? Told from its header before work starts, so that one that does not runs in a leaner way
or is refused.

Without this the kernel would end the worker in the middle of the job, and again at every further attempt.

The leaner way: the scan waits in a file of the job's folder, mapped into memory so that the kernel can drop what is not
being read, and files are written one after another. Masks and numbers are the same.
"""

import time
from dataclasses import replace
from math import prod
from pathlib import Path

from service.errors import InsufficientMemory
from service.imaging.geometry import Geometry
from service.imaging.volume import Notice, Volume
from service.inference.grid import whole_grid
from service.inference.manifest import Manifest
from service.inference.spool import IN_MEMORY_BYTES
from service.neighbours import NO_NEIGHBOURS, Neighbours
from service.progress import Progress, Stage, no_progress
from service.reporting.outputs import NO_DICOM, OutputPlan
from service.request import Output, SegType

LOW_MEMORY = "memory-low"
"""The code of the notice that a job ran in the leaner way."""

# Of a label's logits those near its surface are kept. Random weights, whose masks are all surface, keep about
# an eighth.
_KEPT_SHARE = 0.125
# Labels lie in boxes; an anatomical one fills an eighth of a scan at most, on the average.
_BOX_SHARE = 0.125
# The largest of them, which may fill the scan, for each voxel of the model grid: its mask before and after the rules,
# and its components; and for each voxel of the scan, while it is measured: its mask and its HU.
_BYTES_OF_A_LABEL, _MEASURED_BYTES = 7, 3
# For each voxel of the scan: where segments overlap; a label map, renumbered, and read back again; outlines.
_BINARY_BYTES, _LABELMAP_BYTES, _STRUCTURE_SET_BYTES = 1.5, 4.0, 0.5
# Rows that resampling works on at once, on the model grid.
_BLOCK_ROWS = 16
# What does not grow with the scan: buffers of engine and decoders, the picture, what numpy and torch allocate once.
_FIXED_BYTES = 200 * 1024**2

_LOOK_SECONDS = 0.1
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def admit(
    geometry: Geometry,
    manifest: Manifest,
    labels: int,
    outputs: OutputPlan = NO_DICOM,
    neighbours: Neighbours = NO_NEIGHBOURS,
    progress: Progress = no_progress,
) -> bool:
    """Whether a job on a scan of this geometry, with so many labels predicted, has to run in the leaner way.

    False where all fits into what is free now, and on a machine that does not tell what is. What is promised to
    neighbours is not free; a job that would fit without them waits for them, and `progress` may end that by raising.
    Raises InsufficientMemory when it does not fit either way.
    """
    full = predicted_bytes(geometry, manifest, labels, outputs)
    needed = predicted_bytes(geometry, manifest, labels, outputs, lean=True)
    while (free := available_bytes()) is not None:
        with neighbours.accounts() as accounts:
            free -= accounts.owed_bytes
            if full <= free:
                accounts.promise(full)
                return False
            if accounts.alone:
                if needed > free:
                    raise _too_large(geometry, labels, needed, free)
                accounts.promise(needed)
                return True
        progress(Stage.WAITING, 0.0)
        time.sleep(_LOOK_SECONDS)
    return False


def _too_large(geometry: Geometry, labels: int, needed: int, free: int) -> InsufficientMemory:
    i, j, k = geometry.shape
    return InsufficientMemory(
        f"The scan ({i} x {j} x {k} voxels, {labels} labels) needs about {needed / 1e9:.1f} GB of memory and the "
        f"worker has {free / 1e9:.1f} GB free. Send fewer slices or ask for fewer targets, or give the worker more."
    )


def leaner(volume: Volume, folder: Path) -> Volume:
    """The volume with its voxels on the disk of `folder`, and a notice of it. Nothing is left there afterwards.

    Raises OSError when the disk is full.
    """
    notice = Notice(
        LOW_MEMORY,
        "The worker had little memory: the scan was read from the disk again and files were written one after another. "
        "Masks and numbers are the same.",
    )
    return replace(volume.on_disk(folder), notices=(*volume.notices, notice))


def predicted_bytes(
    geometry: Geometry, manifest: Manifest, labels: int, outputs: OutputPlan = NO_DICOM, *, lean: bool = False
) -> int:
    """The most that a job takes at a time, beyond the open model, with masks as anatomy has them.

    The stages follow each other, and the largest counts: resampling to the model grid, the network, the way back,
    measuring, writing. Random weights, with which every label fills the scan, can take more.
    """
    scan = 2 * prod(geometry.shape)
    bits = round(_BOX_SHARE * labels * prod(geometry.shape) / 8)
    stages = (
        _preprocessing(geometry, manifest),
        _inference(geometry, manifest, labels),
        bits + _postprocessing(geometry, manifest, labels),
        bits + _MEASURED_BYTES * prod(geometry.shape),
        bits + _writing(geometry, outputs, one_by_one=lean),
    )
    return _FIXED_BYTES + (max(scan, *stages) if lean else scan + max(stages))


def _preprocessing(geometry: Geometry, manifest: Manifest) -> int:
    """The scan on the model grid, and its crop or the intermediates of a block of slices."""
    grid = whole_grid(geometry, manifest.preprocessing.spacing_mm)
    columns, rows, slices = geometry.shape
    model = dict(zip(grid.to_ras.axes, grid.whole, strict=True))  # by axis of the source
    sources = min(slices, -(-_BLOCK_ROWS * slices // model[2]) + 4)
    block = 4 * columns * (rows * (sources + _BLOCK_ROWS) + model[1] * _BLOCK_ROWS)
    on_model_grid = 4 * prod(grid.whole)
    return on_model_grid + max(block, on_model_grid)


def _inference(geometry: Geometry, manifest: Manifest, labels: int) -> int:
    """The scan on the model grid, the logits that windows may still touch, and those that are kept."""
    m0, m1, m2 = whole_grid(geometry, manifest.preprocessing.spacing_mm).whole
    stride, roi = manifest.backbone.feature_stride, manifest.sliding_window.roi_size
    f0, f1 = (-(-max(m, edge) // stride) for m, edge in zip((m0, m1), roi[:2], strict=True))
    # One label's more than once, while it is decided what to keep of them; and one window's.
    accumulator = 4 * (labels + 4) * f0 * f1 * (roi[2] // stride)
    window = 4 * labels * prod(roi) // stride**3
    return 4 * m0 * m1 * m2 + accumulator + window + _kept(geometry, manifest, labels)


def _postprocessing(geometry: Geometry, manifest: Manifest, labels: int) -> int:
    """The kept logits and one label."""
    model_grid = prod(whole_grid(geometry, manifest.preprocessing.spacing_mm).whole)
    return _kept(geometry, manifest, labels) + _BYTES_OF_A_LABEL * model_grid


def _kept(geometry: Geometry, manifest: Manifest, labels: int) -> int:
    model_grid = prod(whole_grid(geometry, manifest.preprocessing.spacing_mm).whole)
    kept = round(_KEPT_SHARE * labels * 4 * model_grid / manifest.backbone.feature_stride**3)
    return min(kept, IN_MEMORY_BYTES)


def _writing(geometry: Geometry, outputs: OutputPlan, *, one_by_one: bool) -> int:
    """The DICOM objects, at once or one after another; all other files are written in slabs."""
    if outputs.source is None:
        return 0
    segmentation = _LABELMAP_BYTES if outputs.seg_type is SegType.LABELMAP else _BINARY_BYTES
    a_voxel = [
        segmentation if outputs.wanted & {Output.SEG, Output.SR} else 0.0,
        _STRUCTURE_SET_BYTES if Output.RTSTRUCT in outputs.wanted else 0.0,
    ]
    return round((max(a_voxel) if one_by_one else sum(a_voxel)) * prod(geometry.shape))


def available_bytes() -> int | None:
    """Memory that this process can still take: of the machine and of its container; None where neither is known."""
    known = [free for free in (_free_on_machine(), _free_in_container()) if free is not None]
    return min(known, default=None)


def _free_on_machine() -> int | None:
    """MemAvailable of Linux: free memory and what the kernel can give up."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    sizes = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(kib) * 1024 for _, kib, *_ in sizes), None)


def _free_in_container() -> int | None:
    """The limit of the control group (version 2, as a container sees its own) less what is in use.

    Files that the kernel keeps in memory count as use there and are given up when memory runs short.
    """
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used + int(statistics.get("inactive_file", 0)), 0)
