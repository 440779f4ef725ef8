"""What a precision changes in the masks, and what it saves, on any study.

    python -m benchmarks.precisions STUDY [STUDY ...] [--bundle BUNDLE] [--postprocessing reference] [--repeat 3]

Each run reads the study and writes all artifacts, in every precision that the bundle offers and this machine computes
in. Prints the seconds of the network and of the whole job (medians), how many labels have a Dice below 0.995 with the
masks of fp32, and the three lowest, with the voxels that the label has in fp32: of 100 voxels, one is 0.005.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.modes import Runs, measure
from service.errors import EngineUnavailable
from service.inference.engines import DEFAULT_PRECISION
from service.inference.model import Model, load_bundle
from service.request import PostProcessing, SegmentationRequest
from training.detection import dice

GOAL = 0.995
SHOWN = 3


def open_precisions(bundle: Path | None) -> dict[str, Model]:
    """The bundle in each precision that runs here, fp32 first."""
    models = {DEFAULT_PRECISION: load_bundle(bundle)}
    for precision in models[DEFAULT_PRECISION].bundle.manifest.precisions:
        try:
            models.setdefault(precision.name, load_bundle(bundle, precision=precision.name))
        except EngineUnavailable as error:
            Console().print(f"{precision.name}: {error.detail}")
    return models


def agreement(runs: Runs, reference: Runs) -> list[tuple[float, str, int]]:
    """Dice, name and voxels in the reference of every label that either found, the lowest Dice first."""
    found = []
    for name, mask in reference.masks.items():
        voxels, others = int(mask.sum()), int(runs.masks[name].sum())
        if voxels or others:
            found.append((dice(runs.masks[name], mask), name, voxels))
    return sorted(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each study."""
    parser = argparse.ArgumentParser(description="Precisions, side by side.")
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--postprocessing", type=PostProcessing, default=PostProcessing.VISCERA)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    models = open_precisions(options.bundle)
    request = SegmentationRequest(postprocessing=options.postprocessing)
    for study in options.studies:
        table = Table("", "network, s", "job, s", "labels", f"below {GOAL}", "lowest Dice", title=study.name)
        table.caption = f"{os.cpu_count()} cores"
        runs = {name: measure(study, model, request, options.repeat) for name, model in models.items()}
        for name, run in runs.items():
            found = agreement(run, runs[DEFAULT_PRECISION])
            lowest = ", ".join(f"{value:.4f} {label} ({voxels})" for value, label, voxels in found[:SHOWN])
            below = sum(value < GOAL for value, _, _ in found)
            table.add_row(name, f"{run.network_s:.1f}", f"{run.job_s:.1f}", str(len(found)), str(below), lowest)
        Console().print(table)


if __name__ == "__main__":
    main()
