"""Does a scan fit into memory? Told from its header, so that one that does not is refused before work starts.

Without this the kernel would end the worker in the middle of the job, and again at every further attempt.
"""

from math import prod
from pathlib import Path

from service.errors import InsufficientMemory
from service.imaging.geometry import Geometry
from service.inference.grid import whole_grid
from service.inference.manifest import Manifest

# Float arrays as large as the model grid while a label goes back to the source: logits, probability, margin.
_ARRAYS_OF_A_LABEL = 3
# Of a label's logits those near its surface are kept. Random weights, whose masks are all surface, keep about
# an eighth.
_KEPT_SHARE = 0.125
# What does not grow with the scan: buffers of engine and decoders, the picture, what numpy and torch allocate once.
_FIXED_BYTES = 200 * 1024**2

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def admit(geometry: Geometry, manifest: Manifest, labels: int) -> None:
    """Return when a job on a scan of this geometry, with so many labels predicted, fits into what is free now.

    Raises InsufficientMemory when it does not. A machine that does not tell what is free lets every scan pass.
    """
    needed, free = predicted_bytes(geometry, manifest, labels), available_bytes()
    if free is not None and needed > free:
        i, j, k = geometry.shape
        raise InsufficientMemory(
            f"The scan ({i} x {j} x {k} voxels, {labels} labels) needs about {needed / 1e9:.1f} GB of memory and the "
            f"worker has {free / 1e9:.1f} GB free. Send fewer slices or ask for fewer targets, or give the worker more."
        )


def predicted_bytes(geometry: Geometry, manifest: Manifest, labels: int) -> int:
    """The most that a job takes at a time, beyond the open model, with masks as anatomy has them.

    The stages follow each other, and the largest counts: resampling to the model grid, the network, the way back.
    Random weights, with which every label fills the scan, can take more.
    """
    grid = whole_grid(geometry, manifest.preprocessing.spacing_mm)
    _, n1, n2 = (geometry.shape[axis] for axis in grid.to_ras.axes)
    m0, m1, m2 = grid.whole
    model_grid = 4 * m0 * m1 * m2
    source = prod(geometry.shape)

    resampled_twice = 4 * m0 * m1 * n2  # one axis after another
    preprocessing = resampled_twice + max(4 * m0 * n1 * n2, model_grid)

    stride, roi = manifest.backbone.feature_stride, manifest.sliding_window.roi_size
    f0, f1 = (-(-max(m, edge) // stride) for m, edge in zip((m0, m1), roi[:2], strict=True))
    accumulator = 4 * (labels + 1) * f0 * f1 * (roi[2] // stride)
    kept = round(_KEPT_SHARE * labels * model_grid / stride**3)
    inference = model_grid + accumulator + kept

    packed = source * (4 if labels <= 32 else 8)
    postprocessing = packed + kept + _ARRAYS_OF_A_LABEL * model_grid
    return _FIXED_BYTES + 2 * source + max(preprocessing, inference, postprocessing)


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
