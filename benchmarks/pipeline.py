"""A study from file to files, by the published way and by Viscera, one after the other in one run.

    python -m benchmarks.pipeline STUDY [--bundle BUNDLE --checkpoint WEIGHTS | --random-swin [--finds-nothing]]
        [--overlap 0.5] [--precision bf16] [--out FOLDER]

Both read the same NIfTI file (a DICOM study is converted first), run the same weights with the same overlap and the
same rules (`reference`), and write a mask for every label; Viscera writes findings, label map and picture too.
`--random-swin`: a Swin UNETR of the published size with random weights; its masks fill the body, or are
empty with `--finds-nothing`. `--precision` is that of Viscera; the published way has fp32 alone. Prints the seconds of
each stage, their ratio, the peak RSS of either process, and how far the masks agree. Needs the extra `training`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.random_swin import random_swin
from service.imaging.study import read_study, read_volume, select_ct_series
from service.inference.engines import DEFAULT_PRECISION
from training.detection import dice

STAGES = ("reading", "preprocessing", "inference", "postprocessing", "measuring", "writing")
NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Run:
    """One process: seconds by stage, seconds and peak RSS (MiB) of all of it; peaks by stage where they are told."""

    stages: dict[str, float]
    seconds: float
    peak_mib: float
    peak_mib_by_stage: dict[str, float]


def as_nifti(study: Path, folder: Path) -> Path:
    """The CT of a study as one NIfTI file; such a file is taken as it is."""
    if study.name.endswith(NIFTI):
        return study
    with tempfile.TemporaryDirectory() as scratch:
        volume = read_volume(select_ct_series(read_study(study, Path(scratch))))
    scan = folder / "ct.nii.gz"
    image = nibabel.Nifti1Image(volume.hu, volume.geometry.affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, scan)
    return scan


def run(script: str, scan: Path, out: Path, options: Sequence[str]) -> Run:
    """A script of this folder in a process of its own."""
    path = Path(__file__).with_name(script)
    command = [sys.executable, "-W", "ignore", str(path), str(scan), "--out", str(out), *options]
    start = time.perf_counter()
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - this interpreter, this package
    seconds = time.perf_counter() - start
    said = json.loads(finished.stdout.splitlines()[-1])
    return Run(said["seconds"], seconds, said["peak_mib"], said.get("peak_mib_by_stage", {}))


def agreement(reference: Path, out: Path) -> dict[str, float]:
    """Dice of every mask that is not empty in both."""
    found = {}
    for path in sorted(reference.glob("*.nii.gz")):
        ours, theirs = (np.asarray(nibabel.load(mask).dataobj) > 0 for mask in (out / "masks" / path.name, path))
        if ours.any() or theirs.any():
            found[path.name.removesuffix(".nii.gz")] = dice(ours, theirs)
    return found


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description="The published way and Viscera, side by side.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--random-swin", action="store_true")
    parser.add_argument("--finds-nothing", action="store_true")
    parser.add_argument("--precision", default=DEFAULT_PRECISION)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        scan = as_nifti(arguments.study, out)
        if arguments.random_swin:
            precisions = ("fp32", arguments.precision)
            swin = random_swin(Path(scratch), precisions=precisions, finds_nothing=arguments.finds_nothing)
            arguments.bundle, arguments.checkpoint = swin.bundle, swin.checkpoint
        options = ["--overlap", str(arguments.overlap)]
        options += [] if arguments.bundle is None else ["--bundle", str(arguments.bundle)]
        weights = [] if arguments.checkpoint is None else ["--checkpoint", str(arguments.checkpoint)]
        # First what may be refused, a precision that the bundle does not offer: the published way may take an hour.
        ours = run("ours.py", scan, out / "viscera", [*options, "--precision", arguments.precision])
        theirs = run("reference.py", scan, out / "reference", [*options, *weights])
        report(scan, theirs, ours, agreement(out / "reference", out / "viscera"))


def report(scan: Path, theirs: Run, ours: Run, masks: dict[str, float]) -> None:
    """The table."""
    table = Table("", "reference, s", "Viscera, s", "times faster", title=f"{scan.name}, {os.cpu_count()} cores")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [(name, theirs.stages.get(name, 0.0), ours.stages.get(name, 0.0)) for name in STAGES]
    after = [sum(run.stages.get(name, 0.0) for name in STAGES[3:]) for run in (theirs, ours)]
    rows += [("all after the network", *after), ("whole process", theirs.seconds, ours.seconds)]
    for name, reference, viscera in rows:
        table.add_row(
            name, f"{reference:.2f}", f"{viscera:.2f}", f"{reference / viscera:.1f}" if reference and viscera else ""
        )
    console = Console()
    console.print(table)
    console.print(f"peak RSS {theirs.peak_mib:.0f} and {ours.peak_mib:.0f} MiB")
    if masks:
        worst = min(masks, key=lambda name: masks[name])
        console.print(f"masks: {len(masks)} labels, lowest Dice {masks[worst]:.5f} ({worst})")


if __name__ == "__main__":
    main()
