"""The default bundle by the service and by the published way (`benchmarks/reference.py`): two codes, the same masks."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.reference import postprocess, segment, torch_model
from service.inference.bundle import default_bundle_path
from service.inference.model import load_bundle
from service.pipeline import segment_study
from service.request import PostProcessing, SegmentationRequest
from training.detection import dice
from training.labels import LABELS
from training.phantom.phantom import FieldOfView, draw_phantom
from training.phantom.write import write_ct


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An abdomen, higher than a window (shorter ones the two pad by a voxel more or less in front); many of its voxels
    are half way between two of the model's grid."""
    path = tmp_path_factory.mktemp("scan") / "ct.nii.gz"
    write_ct(draw_phantom(5, spacing_mm=(3.0, 3.0, 2.5), field_of_view=FieldOfView(-140.0, 110.0)), path)
    return path


def test_masks_are_those_of_the_published_way(scan: Path, tmp_path: Path) -> None:
    """Whole-volume logits, another sliding window, another head, rules on whole volumes: nothing of it is shared."""
    bundle = default_bundle_path()
    model = load_bundle(bundle)
    seconds = segment(scan, tmp_path / "reference", torch_model(bundle, None), model.bundle.manifest, overlap=0.5)
    assert seconds.keys() == {"reading", "preprocessing", "inference", "postprocessing", "writing"}
    request = SegmentationRequest(overlap=0.5, postprocessing=PostProcessing.REFERENCE)
    (tmp_path / "viscera").mkdir()
    segment_study(scan, tmp_path / "viscera", model, request)
    found = []
    for label in LABELS:
        name = f"{label.name}.nii.gz"
        ours = np.asarray(nibabel.load(tmp_path / "viscera" / "masks" / name).dataobj) > 0
        theirs = np.asarray(nibabel.load(tmp_path / "reference" / name).dataobj) > 0
        assert dice(ours, theirs) >= 0.9999, (label.name, int(ours.sum()), int(theirs.sum()), dice(ours, theirs))
        found += [label.name] if ours.any() else []
    assert len(found) > 12


def test_rules_of_the_published_way_by_hand() -> None:
    """Blocks on a line: the larger liver stays, a tumor far from it goes, the vein is cut below the pancreas."""
    empty = {label.name: np.zeros((40, 12, 12), bool) for label in LABELS}
    liver, tumor, vein, pancreas = ({**empty}[name].copy() for name in ("liver", "liver_tumor", "aorta", "pancreas"))
    liver[2:10, 2:10, 2:10] = True
    liver[14:16, 2:4, 2:4] = True
    tumor[8:11, 4:6, 4:6] = True
    tumor[20:24, 4:6, 4:6] = True
    vein[30, 5, :] = True
    pancreas[33:36, 5:8, 4:9] = True
    lungs = {"lung_right": np.zeros_like(liver), "lung_left": np.zeros_like(liver)}
    lungs["lung_right"][1:9] = True
    lungs["lung_left"][20:30] = True
    done = postprocess(
        empty | {"liver": liver, "liver_tumor": tumor, "portal_and_splenic_vein": vein, "pancreas": pancreas} | lungs
    )
    assert np.argwhere(done["liver"]).max(axis=0).tolist() == [9, 9, 9]
    assert np.flatnonzero(done["liver_tumor"].any(axis=(1, 2))).tolist() == [8, 9, 10]  # up to two voxels beyond
    assert np.flatnonzero(done["portal_and_splenic_vein"][30, 5]).tolist() == list(range(4, 12))
    assert done["lung_left"][1:9].all()  # x grows to the right
    assert done["lung_right"][20:30].all()
