"""What the modes and a choice of targets cost and save, on any study.

    python -m benchmarks.modes STUDY [STUDY ...] [--bundle BUNDLE] [--targets liver,liver_tumor] [--repeat 3]
        [--precision bf16]

The model is opened once; each run reads the study and writes all artifacts. Prints, for every mode, the seconds of the
network and of the whole job (medians) and the Dice of its masks with those of `accurate`, over the labels that have at
least 10 ml there; then the seconds for the targets alone. Runs of one request must give one mask
hash, or this ends with an error.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import nibabel
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from service.inference.engines import DEFAULT_PRECISION
from service.inference.model import Model, load_bundle
from service.pipeline import segment_study
from service.progress import Stage
from service.request import Mode, SegmentationRequest
from training.detection import dice

Mask = NDArray[np.bool_]

LEAST_ML = 10.0
"""A label below it is a few voxels of the model's grid, whose Dice says little."""


@dataclass(frozen=True)
class Runs:
    """Medians over the runs of one request, its masks, and their volumes in ml."""

    network_s: float
    job_s: float
    masks: dict[str, Mask]
    volumes_ml: dict[str, float]


def measure(study: Path, model: Model, request: SegmentationRequest, repeat: int) -> Runs:
    """The same request several times. Raises RuntimeError when the masks are not the same every time."""
    network, job, hashes = [], [], set()
    masks: dict[str, Mask] = {}
    volumes_ml: dict[str, float] = {}
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            findings = segment_study(study, Path(folder), model, request)
            provenance = findings.provenance
            job.append(time.perf_counter() - start)
            network.append((provenance.timings_seconds or {}).get(Stage.INFERENCE.value, 0.0))
            hashes.add(provenance.mask_sha256)
            if len(hashes) > 1:
                raise RuntimeError("Two runs of one request gave different masks.")
            if not masks:
                volumes_ml = {organ.label: organ.volume_ml for organ in findings.organs}
                volumes_ml |= {lesions.label: lesions.total_volume_ml for lesions in findings.lesion_labels}
                masks = {path.name.removesuffix(".nii.gz"): _mask(path) for path in Path(folder, "masks").iterdir()}
    return Runs(median(network), median(job), masks, volumes_ml)


def agreement(runs: Runs, reference: Runs) -> tuple[float, str, float]:
    """Mean Dice over the labels of a size that counts in the reference, the worst of them, and its Dice."""
    names = [name for name, ml in reference.volumes_ml.items() if ml >= LEAST_ML]
    found = {name: dice(runs.masks[name], reference.masks[name]) for name in names}
    worst = min(found, key=lambda name: found[name])
    return sum(found.values()) / len(found), worst, found[worst]


def _mask(path: Path) -> Mask:
    return np.asarray(nibabel.load(path).dataobj) > 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each study."""
    parser = argparse.ArgumentParser(description="Modes and targets, side by side.")
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--targets", default="liver,liver_tumor")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--precision", default=DEFAULT_PRECISION)
    options = parser.parse_args(arguments)
    model = load_bundle(options.bundle, precision=options.precision)
    targets = tuple(options.targets.split(","))
    requests = {mode.value: SegmentationRequest(mode=mode) for mode in Mode}
    for study in options.studies:
        table = Table(
            "", "network, s", "job, s", "mean Dice", "lowest Dice", title=f"{study.name}, {os.cpu_count()} cores"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        runs = {name: measure(study, model, request, options.repeat) for name, request in requests.items()}
        accurate = runs[Mode.ACCURATE.value]
        for name, run in runs.items():
            mean, worst, lowest = agreement(run, accurate)
            table.add_row(name, f"{run.network_s:.1f}", f"{run.job_s:.1f}", f"{mean:.3f}", f"{lowest:.3f} ({worst})")
        part = measure(study, model, SegmentationRequest(targets=targets), options.repeat)
        table.add_row(options.targets, f"{part.network_s:.1f}", f"{part.job_s:.1f}", "", "")
        Console().print(table)


if __name__ == "__main__":
    main()
