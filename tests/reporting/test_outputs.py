"""Which files a result holds: the caller's choice, as far as the input allows it."""

import numpy as np
import pytest
from pydantic import ValidationError

from service.errors import OutputNotPossible
from service.imaging.study import read_study, select_ct_series
from service.reporting.outputs import plan_outputs
from service.request import DEFAULT_OUTPUTS, DICOM_OUTPUTS, Output, SegmentationRequest
from tests.support.dicom_result import write_result
from tests.support.dicom_series import write_ct_series
from tests.support.nifti_files import write_nifti

MASKS = [f"masks/{name}.nii.gz" for name in sorted(("kidney_left", "kidney_right", "kidney_tumor", "liver"))]


def _names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_without_a_choice_a_dicom_series_gets_all_but_what_must_be_asked_for(tmp_path):
    names = _names(write_result(tmp_path, outputs=None).folder)
    assert {name for name in names if not name.startswith("masks/")} == {
        "artifacts.json",
        "dicom/seg-lesions.dcm",
        "dicom/seg-organs.dcm",
        "dicom/sr.dcm",
        "findings.csv",
        "findings.json",
        "key_images/liver_tumor-1.png",
        "key_images/liver_tumor-2.png",
        "overview.png",
        "preview/ct.nii.gz",
        "preview/labels.nii.gz",
        "report.html",
        "report.pdf",
        "segmentation.nii.gz",
    }
    assert names >= set(MASKS)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ((Output.LABEL_MAP,), {"segmentation.nii.gz"}),
        ((Output.CSV, Output.OVERVIEW), {"findings.csv", "overview.png"}),
        ((Output.KEY_IMAGES,), {"key_images/liver_tumor-1.png", "key_images/liver_tumor-2.png"}),
        ((Output.PREVIEW,), {"preview/ct.nii.gz", "preview/labels.nii.gz"}),
        ((Output.HTML,), {"report.html"}),
        ((Output.PDF,), {"report.pdf"}),
        ((Output.ENCAPSULATED_PDF,), {"dicom/report.dcm"}),
        ((Output.SEG,), {"dicom/seg-organs.dcm", "dicom/seg-lesions.dcm"}),
        ((Output.RTSTRUCT,), {"dicom/rtstruct.dcm"}),
    ],
)
def test_a_choice_is_kept_to(tmp_path, outputs, expected):
    assert _names(write_result(tmp_path, outputs=outputs).folder) == expected | {"findings.json", "artifacts.json"}


def _nifti_series(folder):
    path = write_nifti(folder / "ct.nii.gz", np.zeros((16, 16, 16), np.int16))
    return select_ct_series(read_study(path, folder))


def test_nifti_input_gets_no_dicom_and_no_warning_unless_asked_for(tmp_path):
    series = _nifti_series(tmp_path)
    plan = plan_outputs(SegmentationRequest(), series)
    assert (plan.source, plan.notices) == (None, ())
    assert plan.wanted == DEFAULT_OUTPUTS - DICOM_OUTPUTS
    with pytest.raises(OutputNotPossible, match="DICOM input only"):
        plan_outputs(SegmentationRequest(outputs=(Output.MASKS, Output.SEG)), series)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_series_that_cannot_be_referred_to_is_noted_or_refused(tmp_path, keyword):
    write_ct_series(tmp_path / "in", **{keyword: ""})
    series = select_ct_series(read_study(tmp_path / "in", tmp_path))
    plan = plan_outputs(SegmentationRequest(), series)
    assert plan.source is None
    assert [notice.code for notice in plan.notices] == ["dicom-left-out"]
    assert keyword in plan.notices[0].message
    with pytest.raises(OutputNotPossible, match=keyword):
        plan_outputs(SegmentationRequest(outputs=(Output.SR,)), series)


def test_a_missing_frame_of_reference_is_made_up_and_noted(tmp_path):
    def without(dataset, k) -> None:
        del dataset.FrameOfReferenceUID

    result = write_result(tmp_path, change=without)
    assert [notice.code for notice in result.volume.notices] == ["frame-of-reference-missing"]
    assert [warning.code for warning in result.findings.warnings][:1] == ["frame-of-reference-missing"]
    uids = {result.dataset(name).FrameOfReferenceUID for name in ("seg-organs.dcm", "rtstruct.dcm")}
    assert len(uids) == 1


def test_the_choice_does_not_change_what_masks_depend_on():
    plain, other = SegmentationRequest(), SegmentationRequest(outputs=(Output.RTSTRUCT,), deidentify=True)
    assert plain.mask_settings == other.mask_settings
    assert set(plain.mask_settings) == {"targets", "series", "mode", "overlap", "postprocessing"}


@pytest.mark.parametrize("outputs", [("word",), ("seg", "seg"), ()])
def test_an_unknown_doubled_or_empty_choice_is_refused(outputs):
    with pytest.raises(ValidationError):
        SegmentationRequest(outputs=outputs)
