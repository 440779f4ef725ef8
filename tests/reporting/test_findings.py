"""Numbers from masks of a few voxels, and the same anatomy in every orientation."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from service.imaging.geometry import Geometry
from service.imaging.volume import Notice
from service.progress import Stage
from service.reporting import findings as findings_module
from service.reporting.findings import measure
from service.reporting.schema import Side
from tests.support.reporting import LABELS, PROVENANCE, abdomen, box_mask, reoriented, scan

SHAPE = (10, 10, 10)
QUIET = np.zeros(SHAPE, np.int16)


def _findings(painted, hu=QUIET, **options):
    return measure(*scan(hu, painted, **options), PROVENANCE)


def _organ(findings, name):
    return next(organ for organ in findings.organs if organ.label == name)


def _codes(findings):
    return [warning.code for warning in findings.warnings]


def test_mean_and_deviation_over_many_parts_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr(findings_module, "_SUMMED_VOXELS", 7)
    hu = np.random.default_rng(1).integers(-1024, 3000, (10, 10, 10), dtype=np.int16)
    liver = _organ(_findings({"liver": np.ones(SHAPE, np.bool_)}, hu), "liver")
    assert (liver.mean_hu, liver.sd_hu) == (round(float(hu.mean()), 1), round(float(hu.std()), 1))


def test_organ_of_two_voxels():
    hu = QUIET.copy()
    hu[4, 5, 6], hu[5, 5, 6] = 100, 140
    mask = box_mask(SHAPE, (4, 6), (5, 6), (6, 7))
    liver = _organ(_findings({"liver": mask}, hu, affine=np.diag([2.0, 3.0, 4.0, 1.0])), "liver")
    assert liver.present
    assert liver.volume_ml == pytest.approx(2 * 2 * 3 * 4 / 1000)
    assert (liver.mean_hu, liver.sd_hu) == (120.0, 20.0)
    assert (liver.bounding_box_voxel.start, liver.bounding_box_voxel.stop) == ((4, 5, 6), (6, 6, 7))
    assert not liver.cut_by_field_of_view
    assert liver.cut_sides == ()
    assert liver.codes.type.value == "10200004"


def test_absent_organ_is_listed_as_absent():
    findings = _findings({"liver": box_mask(SHAPE, (4, 6), (4, 6), (4, 6))})
    assert [organ.label for organ in findings.organs] == ["liver", "kidney_right", "kidney_left", "vessel"]
    kidney = _organ(findings, "kidney_left")
    assert (kidney.present, kidney.volume_ml, kidney.mean_hu, kidney.bounding_box_voxel) == (False, 0.0, None, None)


def test_nothing_found():
    findings = _findings({})
    assert findings.lesions == ()
    assert "nothing-found" in _codes(findings)
    assert [(one.label, one.count) for one in findings.lesion_labels] == [("liver_tumor", 0), ("kidney_tumor", 0)]


def test_lesion_of_two_voxels():
    hu = QUIET.copy()
    hu[3, 4, 5], hu[4, 4, 5] = 10, 30
    mask = box_mask(SHAPE, (3, 5), (4, 5), (5, 6))
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = [-10, -20, 30]
    (found,) = _findings({"liver": mask, "liver_tumor": mask}, hu, affine=affine, probability=0.6).lesions
    assert found.id == "liver_tumor-1"
    assert (found.host_organ, found.host_overlap_fraction) == ("liver", 1.0)
    assert found.volume_ml == pytest.approx(0.06)
    assert (found.mean_hu, found.sd_hu) == (20.0, 10.0)
    # 4 x 3 mm
    assert (found.longest_axial_diameter_mm, found.perpendicular_diameter_mm) == (5.0, 3.75)
    assert found.slice_index == 5
    assert found.centroid_voxel == (3.5, 4.0, 5.0)
    # RAS (-3, -8, 55)
    assert found.centroid_lps_mm == (3.0, 8.0, 55.0)
    assert (found.mean_probability, found.max_probability) == (0.6, 0.6)
    ends = np.array(found.longest_axis_lps_mm)
    assert np.linalg.norm(ends[0] - ends[1]) == pytest.approx(5.0)
    assert found.sop_instance_uid is None


def test_probability_is_read_at_the_lesions_own_voxels():
    near, far = box_mask(SHAPE, (1, 3), (1, 3), (1, 3)), box_mask(SHAPE, (6, 7), (6, 7), (6, 7))
    volume, masks = scan(QUIET, {"liver_tumor": near | far})
    stored = masks.lesion_probability["liver_tumor"]
    stored[:] = 51
    stored[-1] = 255
    large, small = measure(volume, masks, PROVENANCE).lesions
    assert (large.mean_probability, large.max_probability) == (0.2, 0.2)
    assert (small.mean_probability, small.max_probability) == (1.0, 1.0)


def test_a_region_that_is_called_two_lesions_is_pointed_out():
    one = box_mask(SHAPE, (1, 6), (1, 3), (1, 3))
    tenth = box_mask(SHAPE, (5, 6), (1, 2), (1, 3))  # 2 of 20 voxels
    findings = _findings({"liver": one, "liver_tumor": one, "kidney_tumor": tenth})
    by_label = {lesion.label: lesion.also_labelled for lesion in findings.lesions}
    assert by_label == {"liver_tumor": ("kidney_tumor",), "kidney_tumor": ("liver_tumor",)}
    ambiguous = [warning for warning in findings.warnings if warning.code == "lesion-ambiguous"]
    assert [warning.subject for warning in ambiguous] == ["liver_tumor-1", "kidney_tumor-1"]
    assert "Kidney tumor" in ambiguous[0].message


def test_lesions_that_share_less_than_a_tenth_are_two():
    one = box_mask(SHAPE, (1, 6), (1, 3), (1, 3))
    other = box_mask(SHAPE, (5, 9), (1, 2), (1, 2)) | box_mask(SHAPE, (6, 9), (1, 5), (1, 2))  # 1 of 20, 1 of 13
    findings = _findings({"liver": one | other, "liver_tumor": one, "kidney_tumor": other})
    assert [lesion.also_labelled for lesion in findings.lesions] == [(), ()]
    assert "lesion-ambiguous" not in _codes(findings)


def test_lesion_without_stored_probability():
    volume, masks = scan(QUIET, {"liver_tumor": box_mask(SHAPE, (1, 3), (1, 3), (1, 3))})
    (found,) = measure(volume, replace(masks, lesion_probability={}), PROVENANCE).lesions
    assert found.mean_probability is None
    assert found.max_probability is None


def test_components_touch_over_corners_and_come_largest_first():
    mask = box_mask(SHAPE, (1, 2), (1, 2), (1, 2)) | box_mask(SHAPE, (6, 9), (6, 9), (6, 9))
    mask |= box_mask(SHAPE, (2, 3), (2, 3), (2, 3))  # shares only a corner with the first
    findings = _findings({"liver_tumor": mask})
    assert [lesion.id for lesion in findings.lesions] == ["liver_tumor-1", "liver_tumor-2"]
    assert [lesion.volume_ml for lesion in findings.lesions] == [0.027, 0.002]
    summary = findings.lesion_labels[0]
    assert (summary.count, summary.total_volume_ml) == (2, 0.029)


def test_more_lesions_than_are_listed_are_counted_and_said(monkeypatch):
    monkeypatch.setattr("service.reporting.structures.MOST_LESIONS", 2)
    large, middle = box_mask(SHAPE, (6, 9), (6, 9), (6, 9)), box_mask(SHAPE, (1, 3), (1, 3), (1, 3))
    small = box_mask(SHAPE, (1, 2), (7, 8), (1, 2))
    findings = _findings({"liver_tumor": large | middle | small})
    assert [lesion.volume_ml for lesion in findings.lesions] == [0.027, 0.008]
    assert (findings.lesion_labels[0].count, findings.lesion_labels[0].total_volume_ml) == (3, 0.036)
    (told,) = (warning for warning in findings.warnings if warning.code == "lesions-left-out")
    assert told.subject == "liver_tumor"
    assert "3 were found" in told.message


def test_as_many_lesions_as_are_listed_need_no_warning(monkeypatch):
    monkeypatch.setattr("service.reporting.structures.MOST_LESIONS", 2)
    found = box_mask(SHAPE, (6, 9), (6, 9), (6, 9)) | box_mask(SHAPE, (1, 3), (1, 3), (1, 3))
    assert "lesions-left-out" not in {warning.code for warning in _findings({"liver_tumor": found}).warnings}


def test_single_voxels_as_dense_as_can_be():
    mask = np.zeros((8, 1, 7), bool)
    mask[::2, 0, ::2] = True
    assert len(_findings({"liver_tumor": mask}, np.zeros(mask.shape, np.int16)).lesions) == 16


def test_host_is_the_organ_with_most_of_the_lesion():
    painted = {
        "kidney_right": box_mask(SHAPE, (1, 4), (2, 5), (2, 5)),
        "kidney_left": box_mask(SHAPE, (4, 8), (2, 5), (2, 5)),
        "kidney_tumor": box_mask(SHAPE, (3, 6), (2, 5), (2, 5)),
        "liver": box_mask(SHAPE, (1, 9), (1, 9), (1, 9)),  # holds it all and is no host
    }
    (found,) = _findings(painted).lesions
    assert (found.host_organ, found.host_overlap_fraction) == ("kidney_left", 0.667)


def test_likelier_host_of_equals():
    painted = {
        "kidney_right": box_mask(SHAPE, (1, 4), (2, 5), (2, 5)),
        "kidney_left": box_mask(SHAPE, (4, 8), (2, 5), (2, 5)),
        "kidney_tumor": box_mask(SHAPE, (3, 5), (2, 5), (2, 5)),
    }
    assert _findings(painted).lesions[0].host_organ == "kidney_right"


def test_lesion_outside_its_hosts_is_pointed_out():
    findings = _findings({"liver_tumor": box_mask(SHAPE, (3, 5), (3, 5), (3, 5))})
    assert findings.lesions[0].host_organ is None
    (warning,) = [one for one in findings.warnings if one.code == "lesion-outside-host"]
    assert warning.subject == "liver_tumor-1"


def test_no_such_warning_when_the_host_was_not_requested():
    findings = _findings({"liver_tumor": box_mask(SHAPE, (3, 5), (3, 5), (3, 5))}, labels=(LABELS[4],))
    assert findings.lesions[0].host_organ is None
    assert findings.organs == ()
    assert findings.warnings == ()


@pytest.mark.parametrize(
    ("spans", "sides"),
    [
        (((0, 3), (3, 6), (3, 6)), (Side.LEFT,)),
        (((7, 10), (3, 6), (3, 6)), (Side.RIGHT,)),
        (((3, 6), (0, 3), (3, 6)), (Side.POSTERIOR,)),
        (((3, 6), (3, 6), (7, 10)), (Side.SUPERIOR,)),
        (((3, 6), (3, 6), (0, 10)), (Side.INFERIOR, Side.SUPERIOR)),
        (((1, 9), (1, 9), (1, 9)), ()),
    ],
)
def test_sides_that_cut_an_organ(spans, sides):
    findings = _findings({"liver": box_mask(SHAPE, *spans)})
    liver = _organ(findings, "liver")
    assert liver.cut_sides == sides
    assert liver.cut_by_field_of_view == bool(sides)
    assert ("organ-cut-by-field-of-view" in _codes(findings)) == bool(sides)


def test_sides_follow_the_affine():
    flipped = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS, as DICOM stores it
    liver = _organ(_findings({"liver": box_mask(SHAPE, (0, 3), (0, 3), (3, 6))}, affine=flipped), "liver")
    assert liver.cut_sides == (Side.RIGHT, Side.ANTERIOR)


def test_lesion_cut_by_the_field_of_view():
    findings = _findings({"liver_tumor": box_mask(SHAPE, (3, 5), (3, 5), (8, 10))}, labels=(LABELS[4],))
    assert findings.lesions[0].cut_sides == (Side.SUPERIOR,)
    assert _codes(findings) == ["lesion-cut-by-field-of-view"]


def test_dicom_slices_are_named_by_their_sop_instance_uid():
    uids = tuple(f"2.25.{number}" for number in range(10))
    mask = box_mask(SHAPE, (3, 5), (3, 5), (4, 5)) | box_mask(SHAPE, (3, 7), (3, 7), (5, 6))
    findings = _findings({"liver_tumor": mask}, sop_instance_uids=uids)
    assert findings.source.format == "dicom"
    assert (findings.lesions[0].slice_index, findings.lesions[0].sop_instance_uid) == (5, "2.25.5")


def test_an_empty_uid_is_no_uid():
    findings = _findings({"liver_tumor": box_mask(SHAPE, (3, 5), (3, 5), (4, 5))}, sop_instance_uids=("",) * 10)
    assert findings.lesions[0].sop_instance_uid is None


def test_coronal_series_keeps_its_slice_plane_and_says_so():
    coronal = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
    mask = box_mask(SHAPE, (3, 6), (3, 7), (4, 5))
    findings = _findings({"liver_tumor": mask}, affine=coronal, sop_instance_uids=tuple("0123456789"))
    assert findings.source.slice_axis == "k"
    assert findings.lesions[0].longest_axial_diameter_mm == 5.0
    assert "non-axial-slices" in _codes(findings)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_orientation_of_the_array_changes_no_measurement(axes, flips):
    volume, masks = abdomen((5.0, 6.0, 8.0))
    plain = measure(volume, masks, PROVENANCE)
    turned = measure(*reoriented(volume, masks, axes, flips), PROVENANCE)
    assert turned.source.slice_axis == "ijk"[axes.index(2)]
    assert [organ.volume_ml for organ in turned.organs] == [organ.volume_ml for organ in plain.organs]
    assert [organ.mean_hu for organ in turned.organs] == [organ.mean_hu for organ in plain.organs]
    assert [set(organ.cut_sides) for organ in turned.organs] == [set(organ.cut_sides) for organ in plain.organs]
    assert len(plain.lesions) == 2
    for one, other in zip(plain.lesions, turned.lesions, strict=True):
        assert one.id == other.id
        np.testing.assert_allclose(one.centroid_lps_mm, other.centroid_lps_mm, atol=0.011)
        assert one.longest_axial_diameter_mm == pytest.approx(other.longest_axial_diameter_mm, abs=0.011)
        assert one.host_organ == other.host_organ
        assert one.mean_probability == other.mean_probability


def test_axis_codes():
    assert _findings({}).source.orientation == ("R", "A", "S")
    assert _findings({}, affine=np.diag([-1.0, -1.0, 1.0, 1.0])).source.orientation == ("L", "P", "S")
    turned = np.array([[0.0, 0, 1, 0], [-1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
    assert _findings({}, affine=turned).source.orientation == ("P", "I", "R")


def test_oblique_grid_names_each_direction_once():
    angle = np.radians(44.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert _findings({}, affine=turn).source.orientation == ("R", "A", "S")


def test_left_and_right_that_differ_too_much():
    painted = {
        "kidney_right": box_mask(SHAPE, (1, 5), (1, 5), (1, 5)),
        "kidney_left": box_mask(SHAPE, (6, 8), (1, 3), (1, 5)),
    }
    (warning,) = _findings(painted).warnings
    assert (warning.code, warning.subject) == ("asymmetric-pair", "kidney_left")


def test_a_missing_side_is_pointed_out_unless_the_scan_cuts():
    inside = {"kidney_right": box_mask(SHAPE, (1, 5), (1, 5), (1, 5))}
    cut = {"kidney_right": box_mask(SHAPE, (1, 5), (1, 5), (0, 5))}
    assert _codes(_findings(inside)) == ["asymmetric-pair"]
    assert _codes(_findings(cut)) == ["organ-cut-by-field-of-view"]


def test_lesions_that_fill_their_host():
    painted = {
        "liver": box_mask(SHAPE, (1, 5), (1, 5), (1, 5)),
        "liver_tumor": box_mask(SHAPE, (1, 4), (1, 5), (1, 5)),
    }
    assert _codes(_findings(painted)) == ["lesion-fills-host"]


def test_notices_of_reading_come_first():
    volume, masks = scan(QUIET, {})
    findings = measure(replace(volume, notices=(Notice("thick-slices", "5 mm."),)), masks, PROVENANCE)
    assert _codes(findings) == ["thick-slices", "nothing-found"]


def test_masks_on_another_grid_are_refused():
    volume, masks = scan(QUIET, {})
    elsewhere = replace(volume, geometry=Geometry(SHAPE, np.diag([1.0, 1.0, 1.1, 1.0])))
    with pytest.raises(ValueError, match="grid"):
        measure(elsewhere, masks, PROVENANCE)


def test_progress_is_told():
    told: list[float] = []

    def listen(stage, fraction):
        assert stage is Stage.MEASURING
        told.append(fraction)

    measure(*scan(QUIET, {}), PROVENANCE, listen)
    assert told == sorted(told)
    assert told[-1] == 1.0
