"""One scan's scores: the service's masks against the truth, on the scan's own grid."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cc3d
import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from training.datasets.errors import GridMismatch, UnreadableFile
from training.detection import LEAST_LESION_ML
from training.evaluate import LEAST_ORGAN_ML
from training.evaluation.lesions import LesionScores, score_lesions
from training.evaluation.metrics import Overlap, measure_overlap, nsd_tolerance_mm
from training.evaluation.subjects import Subject, Truth
from training.label_table import LabelMap, has_label
from training.labels import LabelKind
from training.pictures import fullest_slice, overlay

_WINDOW_HU = (-160.0, 240.0)  # abdomen


@dataclass(frozen=True)
class ScanScores:
    """What was measured of one scan, by label name; labels that were not annotated or not segmented are absent.

    `overlaps` has labels that the scan shows, `false_ml` the predicted volume of those that it does not.
    """

    name: str
    patient: str
    overlaps: dict[str, Overlap] = field(default_factory=dict)
    false_ml: dict[str, float] = field(default_factory=dict)
    lesions: dict[str, LesionScores] = field(default_factory=dict)

    @property
    def mean_dice(self) -> float:
        """Of the labels that the scan shows; NaN without any."""
        return float(np.mean([overlap.dice for overlap in self.overlaps.values()])) if self.overlaps else float("nan")


@dataclass(frozen=True)
class Shown:
    """The slice of a scan where the truth and the prediction differ most, truth left, prediction right."""

    label: str
    picture: NDArray[np.uint8]


def score_scan(subject: Subject, result: Path) -> tuple[ScanScores, Shown]:
    """Scores of the masks in the folder of a result. Raises CaseError."""
    truth = subject.truth()
    voxel_ml = float(np.prod(truth.spacing_mm)) / 1000.0
    findings = _read_findings(result)
    overlaps: dict[str, Overlap] = {}
    false_ml: dict[str, float] = {}
    lesions: dict[str, LesionScores] = {}
    predicted_bits = np.zeros_like(truth.bits)
    for label in truth.table.labels:
        path = result / "masks" / f"{label.name}.nii.gz"
        if not truth.supervised >> label.channel & 1 or not path.is_file():
            continue
        mask, orientation = _read_mask(path, truth)
        wanted = has_label(truth.bits, label)
        predicted: NDArray[np.bool_] = apply_orientation(mask, orientation)  # type: ignore[no-untyped-call]
        predicted_bits[predicted] |= predicted_bits.dtype.type(1 << label.channel)
        is_lesion = label.kind is not LabelKind.ORGAN
        least = LEAST_LESION_ML if is_lesion else LEAST_ORGAN_ML
        if np.count_nonzero(wanted) * voxel_ml >= least:
            overlaps[label.name] = measure_overlap(predicted, wanted, truth.spacing_mm, nsd_tolerance_mm(label.name))
        elif not wanted.any():
            false_ml[label.name] = float(np.count_nonzero(predicted) * voxel_ml)
        if is_lesion:
            components, probabilities = _numbered(mask, [f for f in findings if f["label"] == label.name])
            turned = apply_orientation(components, orientation)  # type: ignore[no-untyped-call]
            lesions[label.name] = score_lesions(turned, probabilities, wanted, voxel_ml)
    scores = ScanScores(subject.name, subject.patient, overlaps, false_ml, lesions)
    return scores, _shown(truth, predicted_bits, scores)


def _read_findings(result: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((result / "findings.json").read_text(encoding="utf-8"))["lesions"]
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableFile(f"The result has no readable findings.json: {type(error).__name__}.") from error
    return found


def _read_mask(path: Path, truth: Truth) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """A mask in the order of its file, and how to turn it to the closest RAS."""
    image = nibabel.Nifti1Image.from_filename(path)
    orientation = io_orientation(image.affine)  # type: ignore[no-untyped-call]
    mask = np.asarray(image.dataobj) > 0
    if tuple(mask.shape[int(axis)] for axis in np.argsort(orientation[:, 0])) != truth.bits.shape:
        raise GridMismatch(f"{path.name} has {mask.shape} voxels, the truth {truth.bits.shape}.")
    return mask, orientation


def _numbered(mask: NDArray[np.bool_], findings: list[dict[str, Any]]) -> tuple[NDArray[np.integer], dict[int, float]]:
    """Components of a mask, and the largest probability in each, by the box that findings give them (1 without)."""
    components = cc3d.connected_components(mask, connectivity=26)
    at = {_box(finding): finding.get("max_probability") for finding in findings}
    probabilities = {}
    for number, box in enumerate(ndimage.find_objects(components), 1):
        found = at.get(tuple((span.start, span.stop) for span in box))
        probabilities[number] = 1.0 if found is None else float(found)
    return components, probabilities


def _box(finding: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    box = finding["bounding_box_voxel"]
    return tuple((int(start), int(stop)) for start, stop in zip(box["start"], box["stop"], strict=True))


def _shown(truth: Truth, predicted: LabelMap, scores: ScanScores) -> Shown:
    worst = min(scores.overlaps, key=lambda name: scores.overlaps[name].dice, default="")
    label = truth.table.by_name[worst] if worst else truth.table.labels[0]
    plane = fullest_slice(has_label(truth.bits ^ predicted, label))
    pictures = [
        overlay(truth.hu[:, :, plane], bits[:, :, plane], *_WINDOW_HU, table=truth.table)
        for bits in (truth.bits, predicted)
    ]
    return Shown(worst, np.concatenate(pictures, axis=1))
