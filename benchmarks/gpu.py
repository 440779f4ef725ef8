"""Where the time and the memory go on a GPU: a scan through one engine, the network taken apart into its parts.

    python -m benchmarks.gpu [SCAN.nii.gz] [--bundle BUNDLE] [--engine cuda] [--precisions fp32,fp16] [--json FILE]

Without a scan, one of --shape voxels is made of a phantom and kept beside --json, or in the folder for temporary files.
For each precision it prints the seconds of opening the model, of the network (first run and median of the next), of its
parts (each waited for, so their sum is more than the whole), of a job from file to files by stage, the peak of GPU
memory, and how far the masks of a small crop agree with those of an engine of the CPU. Runs with an engine of the CPU
as well.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from service.errors import VisceraError
from service.imaging.study import read_study, read_volume, select_ct_series
from service.inference.engines import Engine
from service.inference.grid import cropped, full_box
from service.inference.logits import Logits, Slab, gather_logits, logit
from service.inference.model import Model, load_bundle
from service.inference.predictor import Predictor
from service.inference.preprocessing import NetworkInput, preprocess
from service.inference.sliding_window import blended_slabs, predict_windows
from service.pipeline import segment_study
from service.request import SegmentationRequest

SPACING_MM = (0.8, 0.8, 1.0)
DRAWN_COARSER = 3
"""A phantom takes minutes to draw at full size: it is drawn with voxels so many times larger, and each is repeated."""


@dataclass
class Clock:
    """Seconds by part; a GPU is waited for at both ends of a part, so that it counts what was queued in it."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Adds the time inside the `with` to the part."""
        wait(self.device)
        start = time.perf_counter()
        yield
        wait(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass
class TimedEngine:
    """An engine whose runs are timed as `backbone`."""

    engine: Engine
    clock: Clock

    def __post_init__(self) -> None:
        self.name, self.precision = self.engine.name, self.engine.precision
        self.device, self.batch_size = self.engine.device, self.engine.batch_size

    def run(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Engine.run."""
        with self.clock.time("backbone"):
            return self.engine.run(windows)


class TimedPredictor(Predictor):
    """A predictor whose calls are timed as `backbone and head`."""

    clock: Clock

    def __call__(self, windows: torch.Tensor, spent: torch.Tensor | None = None) -> torch.Tensor:
        """See Predictor."""
        with self.clock.time("backbone and head"):
            return super().__call__(windows, spent)


class MemoryWatch:
    """The most memory that anything took on the GPU, sampled every 5 ms; onnxruntime's is unknown to torch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop = threading.Event()
        self.peak_bytes = 0

    def __enter__(self) -> "MemoryWatch":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._device.type == "cuda":
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            free, total = torch.cuda.mem_get_info(self._device)
            self.peak_bytes = max(self.peak_bytes, total - free)


def wait(device: torch.device) -> None:
    """Until the device has done what is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic_scan(path: Path, shape: tuple[int, int, int], seed: int = 5) -> None:
    """A phantom of these voxels of 0.8 x 0.8 x 1 mm, air around it, mirrored along the body until it is long enough."""
    from training.phantom.phantom import draw_phantom

    coarse_x, coarse_y, coarse_z = (edge * DRAWN_COARSER for edge in SPACING_MM)
    small = draw_phantom(seed, spacing_mm=(coarse_x, coarse_y, coarse_z)).hu
    for axis in range(3):
        small = np.repeat(small, DRAWN_COARSER, axis=axis)
    hu = np.full(shape, -1000, np.int16)
    while small.shape[2] < shape[2]:
        small = np.concatenate([small, small[:, :, ::-1]], axis=2)
    width, depth = (min(n, m) for n, m in zip(small.shape[:2], shape[:2], strict=True))
    left, front = (shape[0] - width) // 2, (shape[1] - depth) // 2
    hu[left : left + width, front : front + depth] = small[:width, :depth, : shape[2]]
    image = nibabel.Nifti1Image(hu, np.diag([*SPACING_MM, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def network_input(scan: Path, model: Model) -> tuple[NetworkInput, dict[str, float]]:
    """The scan as the network sees it, and the seconds of reading and preprocessing."""
    clock = Clock(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        with clock.time("reading"):
            volume = read_volume(select_ct_series(read_study(scan, Path(folder))))
        with clock.time("preprocessing"):
            found = preprocess(volume, model.bundle.manifest.preprocessing, model.predictor.device)
    return found, clock.seconds


def network_seconds(scan: NetworkInput, model: Model, repeat: int) -> tuple[float, float]:
    """Of the first run, and the median of as many more."""
    seconds = []
    for _ in range(repeat + 1):
        clock = Clock(model.predictor.device)
        with clock.time("network"):
            predict_windows(scan, model.predictor, model.bundle.manifest.sliding_window)
        seconds.append(clock.seconds["network"])
    return seconds[0], median(seconds[1:] or seconds)


def network_parts(scan: NetworkInput, model: Model) -> dict[str, float]:
    """Seconds of upload, backbone, head, blending (with cutting the windows) and gather."""
    clock = Clock(model.predictor.device)
    with clock.time("upload"):
        torch.from_numpy(scan.values).to(clock.device)
    predictor = TimedPredictor(model.bundle, TimedEngine(model.predictor.engine, clock))
    predictor.clock = clock

    def timed_slabs() -> Iterator[Slab]:
        slabs = blended_slabs(scan, predictor, model.bundle.manifest.sliding_window)
        while True:
            with clock.time("slabs"):
                slab = next(slabs, None)
            if slab is None:
                return
            yield slab

    with clock.time("network"):
        gather_logits(timed_slabs(), predictor.labels, predictor.feature_stride, scan.grid)
    seconds = clock.seconds
    return {
        "upload": seconds["upload"],
        "backbone": seconds["backbone"],
        "head": seconds["backbone and head"] - seconds["backbone"],
        "blending": seconds["slabs"] - seconds["backbone and head"],
        "gather": seconds["network"] - seconds["slabs"],
    }


def job_seconds(scan: Path, model: Model, repeat: int) -> tuple[float, dict[str, float]]:
    """Median of jobs from file to files, and the seconds by stage of the last; what is left of it is writing."""
    seconds = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            findings = segment_study(scan, Path(folder), model, SegmentationRequest())
            seconds.append(time.perf_counter() - start)
    stages = dict(findings.provenance.timings_seconds)
    return median(seconds), stages | {"writing": seconds[-1] - sum(stages.values())}


def agreement(scan: NetworkInput, model: Model, on_cpu: Predictor) -> dict[str, float]:
    """Lowest and mean Dice of the masks of two engines over a crop of two windows, by the labels in either of them."""
    roi = model.bundle.manifest.sliding_window.roi_size
    edges = (roi[0], roi[1], roi[2] * 3 // 2)
    i, j, k = (
        slice(max((n - edge) // 2, 0), max((n - edge) // 2, 0) + min(n, edge))
        for n, edge in zip(scan.values.shape, edges, strict=True)
    )
    whole = replace(scan.grid, crop=full_box(scan.grid.shape), whole=scan.grid.shape)
    crop = NetworkInput(np.ascontiguousarray(scan.values[i, j, k]), cropped(whole, (i, j, k)), scan.background)
    windows = model.bundle.manifest.sliding_window
    ours, theirs = (masks(predict_windows(crop, predictor, windows)) for predictor in (model.predictor, on_cpu))
    dice = [
        2 * np.count_nonzero(mine & other) / (np.count_nonzero(mine) + np.count_nonzero(other))
        for mine, other in zip(ours, theirs, strict=True)
        if mine.any() or other.any()
    ]
    return {"labels": len(dice), "lowest_dice": min(dice, default=1.0), "mean_dice": float(np.mean(dice or [1.0]))}


def masks(logits: Logits) -> list[NDArray[np.bool_]]:
    """The thresholded logits of each label."""
    box = full_box(logits.shape)
    return [
        kept.read(box) > logit(label.threshold) for kept, label in zip(logits.kept.values(), logits.labels, strict=True)
    ]


def measure(scan: Path, options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """All figures of one precision."""
    start = time.perf_counter()
    model = load_bundle(options.bundle, engine=options.engine, precision=precision)
    found: dict[str, Any] = {"precision": precision, "open_s": time.perf_counter() - start}
    engine = model.predictor.engine
    if options.batch is not None:
        engine.batch_size = options.batch
    found |= {"engine": engine.name, "batch": engine.batch_size}
    prepared, found["before_s"] = network_input(scan, model)
    found["model_grid"] = list(prepared.values.shape)
    with MemoryWatch(engine.device) as memory:
        found["network_cold_s"], found["network_warm_s"] = network_seconds(prepared, model, options.repeat)
    if engine.device.type == "cuda":
        found["gpu_memory_gb"] = memory.peak_bytes / 1e9
        found["gpu_memory_of_torch_gb"] = torch.cuda.max_memory_allocated(engine.device) / 1e9
    found["parts_s"] = network_parts(prepared, model)
    if not options.no_agreement:
        found["agreement"] = agreement(prepared, model, model.open_on_cpu())
    if not options.no_job:
        found["job_s"], found["stages_s"] = job_seconds(scan, model, options.repeat)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table with a column for each precision, and one line of JSON."""
    parser = argparse.ArgumentParser(description="Time and memory on a GPU.")
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--engine", default="cuda")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--batch", type=int, default=None, help="windows at once; the engine's choice otherwise")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 400), help="of the scan that is made")
    parser.add_argument("--no-job", action="store_true", help="the network alone")
    parser.add_argument("--no-agreement", action="store_true", help="do not run an engine of the CPU beside it")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    scan = options.scan
    if scan is None:
        folder = Path(tempfile.gettempdir()) if options.json is None else options.json.parent
        scan = folder / f"phantom-{'x'.join(map(str, options.shape))}.nii.gz"
        if not scan.exists():
            synthetic_scan(scan, tuple(options.shape))
    found = []
    for precision in options.precisions.split(","):
        try:
            found.append(measure(scan, options, precision))
        except VisceraError as error:
            found.append({"precision": precision, "error": f"{error.title}: {error.detail}"})
    report(found)
    text = json.dumps({"device": device_name(), "scan": scan.name, "runs": found})
    if options.json is not None:
        options.json.write_text(text)
    print(text)


def device_name() -> str:
    """The GPU, or that there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def report(found: Sequence[dict[str, Any]]) -> None:
    """The table."""
    flat = [dict(_flat(run)) for run in found]
    table = Table("", *(run["precision"] for run in flat), title=device_name())
    names = dict.fromkeys(name for run in flat for name in run if name != "precision")
    for name in names:
        table.add_row(name, *(_text(run.get(name)) for run in flat))
    Console().print(table)


def _flat(run: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in run.items():
        if isinstance(value, dict):
            yield from ((f"{name}: {part}", number) for part, number in value.items())
        else:
            yield name, value


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    main()
