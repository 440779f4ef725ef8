"""Evaluation on phantoms never trained on, through the command that users run.

The service segments each phantom scan from its NIfTI file and the masks it writes are compared with the truth, on the
scan's own grid. `training` does not import the service: it calls `viscera segment`, as anyone would.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from rich.progress import track

from training.commands import CommandError, segment
from training.detection import LEAST_LESION_ML, Detections, count_detections, dice
from training.labels import LABELS, LESIONS, ORGANS
from training.phantom.phantom import draw_phantom
from training.phantom.write import write_ct
from training.pools import process_pool

TRUTH_FILE = "labels.npy.gz"
FIRST_TEST_SEED = 7_000_000  # training and validation seeds lie below
#: Less than this of a structure inside the field of view is a sliver: it is not scored. Millilitres.
LEAST_ORGAN_ML = 0.5


class EvaluationError(RuntimeError):
    """`viscera segment` could not be run or refused the phantoms."""


@dataclass
class Scores:
    """What was measured; keys are label names."""

    scans: int = 0
    dice: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    detections: dict[str, list[Detections]] = field(default_factory=lambda: defaultdict(list))

    @property
    def mean_organ_dice(self) -> float:
        """Mean over organs of the mean over scans; NaN when no organ was scored."""
        means = [np.mean(self.dice[organ.name]) for organ in ORGANS if self.dice.get(organ.name)]
        return float(np.mean(means)) if means else math.nan

    @property
    def lesion_sensitivity(self) -> float:
        """Found lesions over all lesions, of all types."""
        every = [d for found in self.detections.values() for d in found]
        return sum(d.found for d in every) / max(1, sum(d.lesions for d in every))

    @property
    def false_positives_per_scan(self) -> float:
        """Predicted lesions that touch no lesion of their type, of all types, over the number of scans."""
        return sum(d.false_positives for found in self.detections.values() for d in found) / max(1, self.scans)


def evaluate(folder: Path, *, bundle: str | None, scans: int) -> Scores:
    """Scores of a bundle (path or name; None: the default) on `scans` phantoms, drawn into and read from `folder`."""
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + scans)
    missing = [seed for seed in seeds if not (folder / "phantoms" / str(seed) / f"{seed}.nii.gz").exists()]
    with process_pool(None) as pool:
        jobs = [pool.submit(_draw, folder, seed) for seed in missing]
        for job in track(jobs, description="Phantoms"):
            job.result()
    _segment(folder, seeds, bundle)
    return score_scans(folder, seeds)


def score_scans(folder: Path, seeds: range) -> Scores:
    """Scores of the masks that lie in `folder` beside their phantoms."""
    scores = Scores()
    with process_pool(None) as pool:
        jobs = [
            pool.submit(_score, folder / "phantoms" / str(seed), folder / "segmented" / f"{seed}") for seed in seeds
        ]
        for job in track(jobs, description="Scores"):
            scores.scans += 1
            overlaps, detections = job.result()
            for name, value in overlaps.items():
                scores.dice[name].append(value)
            for name, counts in detections.items():
                scores.detections[name].append(counts)
    return scores


def _draw(folder: Path, seed: int) -> None:
    """The scan, and its true labels as one packed array: 32 files of masks would take longer than all the rest."""
    phantom = draw_phantom(seed)
    target = folder / "phantoms" / str(seed)
    target.mkdir(parents=True, exist_ok=True)
    with igzip.open(target / TRUTH_FILE, "wb", compresslevel=1) as file:  # type: ignore[no-untyped-call]  # isal has no annotations
        np.lib.format.write_array(file, np.ascontiguousarray(phantom.labels), allow_pickle=False)
    # One study, one name: the service names its results by the file. Last, so that a file with its name is complete.
    part = target / ".part.nii.gz"
    write_ct(phantom, part)
    part.rename(target / f"{seed}.nii.gz")


def _segment(folder: Path, seeds: range, bundle: str | None) -> None:
    try:
        segment([folder / "phantoms" / str(seed) / f"{seed}.nii.gz" for seed in seeds], folder / "segmented", bundle)
    except CommandError as error:
        raise EvaluationError(str(error)) from error


def _score(truth_folder: Path, result_folder: Path) -> tuple[dict[str, float], dict[str, Detections]]:
    """Dice of each label that the scan shows, and the lesions of each type."""
    overlaps: dict[str, float] = {}
    detections: dict[str, Detections] = {}
    with igzip.open(truth_folder / TRUTH_FILE, "rb") as file:  # type: ignore[no-untyped-call]  # isal has no annotations
        labels = np.lib.format.read_array(file, allow_pickle=False)
    for label in LABELS:
        truth = (labels & np.uint32(1 << label.channel)) != 0
        predicted, voxel_ml = _read_mask(result_folder / "masks" / f"{label.name}.nii.gz")
        truth_ml = np.count_nonzero(truth) * voxel_ml
        if label in LESIONS:
            detections[label.name] = count_detections(predicted, truth, voxel_ml)
        least = LEAST_LESION_ML if label in LESIONS else LEAST_ORGAN_ML
        if truth_ml >= least:
            overlaps[label.name] = dice(predicted, truth)
    return overlaps, detections


def _read_mask(path: Path) -> tuple[NDArray[np.bool_], float]:
    image = nibabel.Nifti1Image.from_filename(path)
    voxel_ml = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000.0
    return np.asarray(image.dataobj) > 0, voxel_ml


def to_markdown(scores: Scores) -> str:
    """The table that the model card shows."""
    lines = [
        f"{scores.scans} phantom scans of seeds {FIRST_TEST_SEED} to {FIRST_TEST_SEED + scores.scans - 1}, "
        "never trained on; segmented by `viscera segment`, scored on the scan's own grid.",
        "",
        f"- mean organ Dice: **{scores.mean_organ_dice:.3f}**",
        f"- lesion sensitivity: **{scores.lesion_sensitivity:.2f}**",
        f"- false-positive lesions per scan: **{scores.false_positives_per_scan:.2f}**",
        "",
        "| label | Dice | scans with it | lesions found | false positives |",
        "|---|---|---|---|---|",
    ]
    for label in LABELS:
        values = scores.dice.get(label.name, [])
        mean = f"{np.mean(values):.3f}" if values else "-"
        found = scores.detections.get(label.name)
        hits = f"{sum(d.found for d in found)} of {sum(d.lesions for d in found)}" if found else ""
        false = f"{sum(d.false_positives for d in found)}" if found else ""
        lines.append(f"| {label.display_name} | {mean} | {len(values)} | {hits} | {false} |")
    return "\n".join(lines) + "\n"
