"""How well organs are found in short scans, and what a bundle's two provisions for what a scan cuts are worth.

    python -m benchmarks.short_scans [--bundle BUNDLE] [--seeds 5]

Slabs of 45, 80 and 130 mm at random heights of phantoms that nothing was trained on. Prints the mean Dice of the organs
with at least 3 ml in a slab: as the bundle says, without the planes that a short scan goes on for, and without the
pieces that an end of the scan cuts off an organ. Needs the extra `training`.
"""

import argparse
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import nibabel
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.inference.bundle import default_bundle_path
from service.inference.model import Model, load_bundle
from service.pipeline import segment_study
from service.request import Output, SegmentationRequest
from training.detection import dice
from training.labels import ORGANS
from training.phantom.phantom import Phantom, draw_phantom

FIRST_SEED = 8_000_000
HEIGHTS_MM = (45, 80, 130)
SPACING_MM = (1.5, 1.5, 2.5)
LEAST_ML = 3.0


def as_it_is(_manifest: dict[str, Any]) -> None:
    """The bundle as it is."""


def without_planes(manifest: dict[str, Any]) -> None:
    """Beyond a short scan there is air."""
    manifest["sliding_window"]["continued_planes"] = 0


def without_pieces(manifest: dict[str, Any]) -> None:
    """An organ is one component, wherever the scan ends."""
    for label in manifest["labels"]:
        for rule in label["postprocessing"]["viscera"]:
            rule.pop("cut_pieces_ml", None)


VARIANTS = {"as it is": as_it_is, "ends in air": without_planes, "one component": without_pieces}


def changed(bundle: Path, change: Callable[[dict[str, Any]], None], copy: Path) -> Model:
    """The model of a copy of the bundle with another manifest."""
    shutil.copytree(bundle, copy)
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return load_bundle(copy)


def slabs(seeds: int) -> Iterator[tuple[int, Phantom, slice]]:
    """Height in mm, phantom, and the planes of a slab of it."""
    rng = np.random.default_rng(1)
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        phantom = draw_phantom(seed, spacing_mm=SPACING_MM)
        for height in HEIGHTS_MM:
            planes = int(height / SPACING_MM[2])
            first = int(rng.integers(0, phantom.hu.shape[2] - planes))
            yield height, phantom, slice(first, first + planes)


def organ_dice(phantom: Phantom, planes: slice, model: Model, folder: Path) -> float:
    """The mean Dice of the organs in a slab."""
    scan = folder / "slab.nii.gz"
    image = nibabel.Nifti1Image(phantom.hu[:, :, planes], phantom.affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, scan)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        segment_study(scan, Path(out), model, SegmentationRequest(overlap=0.25, outputs=(Output.MASKS,)))
        found = []
        for organ in ORGANS:
            truth = phantom.labels[:, :, planes] >> np.uint32(organ.channel) & np.uint32(1) > 0
            if np.count_nonzero(truth) * float(np.prod(SPACING_MM)) / 1000 >= LEAST_ML:
                mask = np.asarray(nibabel.load(Path(out) / "masks" / f"{organ.name}.nii.gz").dataobj) > 0
                found.append(dice(mask, truth))
    return mean(found)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Short scans.")
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    scores: dict[tuple[int, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = arguments.bundle or default_bundle_path()
        models = {name: changed(bundle, change, folder / name) for name, change in VARIANTS.items()}
        total = arguments.seeds * len(HEIGHTS_MM)
        for height, phantom, part in track(slabs(arguments.seeds), "Slabs", total, transient=True):
            for name, model in models.items():
                scores[height, name].append(organ_dice(phantom, part, model, folder))
    table = Table("height, mm", *VARIANTS, title="Mean organ Dice")
    for height in HEIGHTS_MM:
        table.add_row(str(height), *(f"{mean(scores[height, name]):.3f}" for name in VARIANTS))
    Console().print(table)


if __name__ == "__main__":
    main()
