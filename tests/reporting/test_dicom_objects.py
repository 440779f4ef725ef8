"""DICOM SEG, SR and RT Structure Set: where they lie, what they say, and that strangers can read them."""

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.sr import srread
from PIL import Image, ImageDraw
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.imaging.geometry import LPS_FROM_RAS
from service.reporting.structures import lesions, organs
from service.request import Output, SegType
from tests.support.dicom_result import SHAPE, Result, complaints, painted, write_result
from tests.support.dicom_series import axial_affine, body_hu, write_ct_series
from tests.support.enhanced_ct import ENHANCED_CT, LEGACY_CONVERTED_CT, write_enhanced_ct
from tests.support.reporting import PROVENANCE

OBJECTS = ("seg-organs.dcm", "seg-lesions.dcm", "sr.dcm", "rtstruct.dcm")


def _rotation(axis: int, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    first, second = [n for n in range(3) if n != axis]
    matrix[[first, first, second, second], [first, second, first, second]] = cos, -sin, sin, cos
    return matrix


#: RAS affines of series, each with the anatomy in another attitude or the image stored another way.
AFFINES = {
    "axial": axial_affine(),
    "mirrored rows": axial_affine() @ np.diag([-1.0, 1.0, 1.0, 1.0]),
    "mirrored columns": axial_affine() @ np.diag([1.0, -1.0, 1.0, 1.0]),
    "feet first": np.diag([-1.0, 1.0, -1.0, 1.0]) @ axial_affine(),
    "rotated in plane": _rotation(2, 30) @ axial_affine(),
    "oblique": _rotation(0, 20) @ _rotation(1, -15) @ _rotation(2, 10) @ axial_affine(),
    "coronal": _rotation(0, 90) @ axial_affine((0.7, 0.7, 4.0)),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return write_result(tmp_path_factory.mktemp("result"))


@pytest.mark.parametrize("name", AFFINES)
def test_masks_keep_their_place_in_the_patient(tmp_path, name):
    """The truth is the affine the series was written with; the readers are highdicom and a polygon fill of Pillow."""
    affine = AFFINES[name]
    result = write_result(tmp_path, affine=affine, shown=True)
    truth = {label: _points(np.argwhere(mask), LPS_FROM_RAS @ affine) for label, mask in painted().items()}

    segmentation = hd.seg.segread(result.folder / "dicom" / "seg-organs.dcm")
    volume = segmentation.get_volume(combine_segments=False)
    for number in range(1, segmentation.number_of_segments + 1):
        label = segmentation.get_segment_description(number).TrackingID
        found = _points(np.argwhere(volume.array[..., number - 1]), volume.affine)
        assert np.array_equal(found, truth[label]), label

    rtstruct = result.dataset("rtstruct.dcm")
    for roi, contours in zip(rtstruct.StructureSetROISequence, rtstruct.ROIContourSequence, strict=True):
        if roi.ROIName in truth:
            assert np.array_equal(_filled(contours, result.series), truth[roi.ROIName]), roi.ROIName


def test_frames_of_a_tilted_gantry_lie_on_its_slices(tmp_path):
    """Each frame stands where its source image does, and no spacing is stated that such frames do not have."""
    affine = axial_affine()
    affine[1, 2] = affine[2, 2] * np.tan(np.deg2rad(14))
    result = write_result(tmp_path, affine=affine, shown=True)
    placed = {file.SOPInstanceUID: file.ImagePositionPatient for file in map(pydicom.dcmread, result.series)}
    segmentation = result.dataset("seg-organs.dcm")
    assert "SpacingBetweenSlices" not in segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert frame.PlanePositionSequence[0].ImagePositionPatient == placed[source.ReferencedSOPInstanceUID]
    assert (result.folder / "dicom" / "rtstruct.dcm").exists()


FRAME_ORDER = [5, 0, 11, 3, 8, 1, 10, 2, 7, 4, 9, 6]  # of the slices in a multi-frame file


@pytest.fixture(scope="module", params=[ENHANCED_CT, LEGACY_CONVERTED_CT], ids=lambda uid: uid.name)
def multi_frame(request, tmp_path_factory) -> Result:
    def write(folder):
        folder.mkdir()
        path = folder / "enhanced"
        return [write_enhanced_ct(path, body_hu(SHAPE), axial_affine(), sop_class=request.param, order=FRAME_ORDER)]

    return write_result(tmp_path_factory.mktemp("multi-frame"), write=write)


@pytest.mark.parametrize("name", ["seg-organs.dcm", "seg-lesions.dcm"])
def test_segments_of_a_multi_frame_series_refer_to_its_frames(multi_frame, name):
    """Each frame names the frame of the source that lies where it does, whatever the order in the file."""
    source = pydicom.dcmread(multi_frame.series[0])
    segmentation = multi_frame.dataset(name)
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        group = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
        assert _position(frame) == pytest.approx(_position(group), abs=1e-6)


@pytest.mark.parametrize("seg_type", SegType)
def test_masks_of_a_multi_frame_series_lie_in_their_place(tmp_path, seg_type):
    def write(folder):
        folder.mkdir()
        return [write_enhanced_ct(folder / "enhanced", body_hu(SHAPE), axial_affine(), order=FRAME_ORDER)]

    masks = {name: mask for name, mask in painted().items() if name != "vessel"}  # it lies over the liver
    result = write_result(tmp_path, write=write, masks=masks, seg_type=seg_type)
    segmentation = hd.seg.segread(result.folder / "dicom" / "seg-organs.dcm")
    volume = segmentation.get_volume(combine_segments=False)
    for number in segmentation.segment_numbers:
        label = segmentation.get_segment_description(number).TrackingID
        found = _points(np.argwhere(volume.array[..., number - 1]), volume.affine)
        affine = LPS_FROM_RAS @ result.volume.geometry.affine
        assert np.array_equal(found, _points(np.argwhere(masks[label]), affine)), label


def test_contours_of_a_multi_frame_series_refer_to_its_frames(multi_frame):
    source = pydicom.dcmread(multi_frame.series[0])
    for region in multi_frame.dataset("rtstruct.dcm").ROIContourSequence:
        for contour in region.ContourSequence:
            (reference,) = contour.ContourImageSequence
            group = source.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1]
            assert float(contour.ContourData[2]) == pytest.approx(_position(group)[2], abs=1e-3)


@pytest.mark.parametrize("name", OBJECTS)
def test_dciodvfy_has_no_complaint_about_results_of_a_multi_frame_series(multi_frame, name):
    assert complaints(multi_frame.folder / "dicom" / name) == []


def test_slices_that_were_missing_are_left_out_and_said(tmp_path):
    """A lesion that lies in nothing else is left out with them; the findings and the masks keep it."""
    masks = painted()
    masks["liver_tumor"][5:9, 4:8, 6] = True  # in the gap, and apart from the others
    result = write_result(
        tmp_path,
        masks=masks,
        write=lambda folder: [path for path in write_ct_series(folder, body_hu(SHAPE)) if not _lost(path, k=6)],
    )
    assert "dicom-slices-left-out" in {notice.code for notice in result.volume.notices}
    assert result.volume.sop_instance_uids[6] == ""
    lost_mm = float((result.volume.geometry.affine @ [0, 0, 6, 1])[2])
    for name in ("seg-organs.dcm", "seg-lesions.dcm"):
        frames = result.dataset(name).PerFrameFunctionalGroupsSequence
        assert min(abs(_position(frame)[2] - lost_mm) for frame in frames) > 1.0
    assert {lesion.id for lesion in result.findings.lesions} == {"liver_tumor-1", "liver_tumor-2", "liver_tumor-3"}
    (left_out,) = (one.id for one in lesions(result.masks) if one.box[2] == slice(6, 7))
    assert left_out not in {item.TrackingID for item in result.dataset("seg-lesions.dcm").SegmentSequence}
    assert left_out not in {item.ROIName for item in result.dataset("rtstruct.dcm").StructureSetROISequence}


def _lost(path, k: int) -> bool:
    if not path.name.endswith(f"-{k:03d}"):
        return False
    path.unlink()
    return True


def _position(group) -> list[float]:
    return [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]


def _points(indices: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxel centres in LPS mm, to 0.01, in a fixed order."""
    millimetres = np.rint((indices @ affine[:3, :3].T + affine[:3, 3]) * 100).astype(int)
    return np.unique(millimetres // 5, axis=0)


def _filled(contours, series) -> np.ndarray:
    """The voxels (LPS) inside the contours, by the source images: drawn 8 times enlarged, looked at in the centre."""
    images = {image.SOPInstanceUID: image for image in map(pydicom.dcmread, series)}
    points = []
    for contour in contours.ContourSequence:
        image = images[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        origin = np.array(image.ImagePositionPatient, float)
        row, column = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = map(float, image.PixelSpacing)
        offsets = np.array(contour.ContourData, float).reshape(-1, 3) - origin
        assert np.abs(offsets @ np.cross(row, column)).max() < 0.01  # in the plane of its image
        i, j = offsets @ row / between_columns, offsets @ column / between_rows
        canvas = Image.new("1", (8 * image.Columns, 8 * image.Rows))
        ImageDraw.Draw(canvas).polygon([*zip(8 * i + 4, 8 * j + 4, strict=True)], fill=1)
        inside = np.argwhere(np.asarray(canvas)[4::8, 4::8])
        points.append(origin + inside[:, 1:] * between_columns * row + inside[:, :1] * between_rows * column)
    return _points(np.concatenate(points), np.eye(4))


@pytest.mark.parametrize("name", OBJECTS)
def test_dciodvfy_has_no_complaint(result, name):
    assert complaints(result.folder / "dicom" / name) == []


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_joins_the_study_in_a_series_of_its_own(result, name):
    source, dataset = pydicom.dcmread(result.series[0]), result.dataset(name)
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
        assert dataset[keyword].value == source[keyword].value
    if name != "sr.dcm":
        assert dataset.FrameOfReferenceUID == source.FrameOfReferenceUID
    series = {result.dataset(other).SeriesInstanceUID for other in OBJECTS} | {source.SeriesInstanceUID}
    assert len(series) == len(OBJECTS) + 1
    assert "Research use only" in dataset.SeriesDescription


def test_every_value_is_one_that_its_representation_allows(result):
    for name in OBJECTS:
        with pydicom.config.strict_reading():
            for element in pydicom.dcmread(result.folder / "dicom" / name).iterall():
                assert element.value is not None or element.VM == 0


def test_segments_say_what_they_are(result):
    organs_seg, lesions_seg = (result.dataset(name) for name in OBJECTS[:2])
    assert (organs_seg.SegmentationType, organs_seg.SegmentsOverlap) == ("BINARY", "YES")
    assert organs_seg.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    by_id = {item.TrackingID: item for item in organs_seg.SegmentSequence}
    assert list(by_id) == ["liver", "kidney_left", "vessel"]  # the right kidney was not found
    kidney = by_id["kidney_left"]
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    color = hd.color.CIELabColor.from_dicom_value(tuple(kidney.RecommendedDisplayCIELabValue)).to_rgb()
    assert np.abs(np.array(color) - (90, 130, 200)).max() <= 2
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("viscera-test", "1.2.3")
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"

    tumors = {item.TrackingID: item for item in lesions_seg.SegmentSequence}
    assert list(tumors) == [lesion.id for lesion in result.findings.lesions] == ["liver_tumor-1", "liver_tumor-2"]
    assert tumors["liver_tumor-1"].AnatomicRegionSequence[0].CodeMeaning == "liver"
    uids = {item.TrackingUID for item in (*organs_seg.SegmentSequence, *lesions_seg.SegmentSequence)}
    assert len(uids) == 5


def test_frames_refer_to_their_source_images(result):
    positions = {
        image.SOPInstanceUID: list(image.ImagePositionPatient) for image in map(pydicom.dcmread, result.series)
    }
    for frame in result.dataset("seg-organs.dcm").PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == positions[source]


def test_a_labelmap_shows_the_smaller_organ_and_lesions_stay_binary(tmp_path):
    result = write_result(tmp_path, seg_type=SegType.LABELMAP)
    segmentation = hd.seg.segread(result.folder / "dicom" / "seg-organs.dcm")
    assert segmentation.SegmentationType == "LABELMAP"
    assert segmentation.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    numbers = {item.TrackingID: item.SegmentNumber for item in segmentation.SegmentSequence if "TrackingID" in item}
    sizes = np.bincount(segmentation.get_volume(combine_segments=True).array.ravel())
    masks = painted()
    assert sizes[numbers["vessel"]] == masks["vessel"].sum()
    assert sizes[numbers["liver"]] == (masks["liver"] & ~masks["vessel"]).sum()
    assert result.dataset("seg-lesions.dcm").SegmentationType == "BINARY"


def test_an_organ_that_others_cover_wholly_has_no_labelmap_segment_and_no_measurements(tmp_path):
    box = np.zeros(SHAPE, np.bool_)
    box[3:6, 3:6, 3:6] = True
    result = write_result(tmp_path, masks={"liver": box, "vessel": box}, seg_type=SegType.LABELMAP)
    shown = [item.TrackingID for item in result.dataset("seg-organs.dcm").SegmentSequence if "TrackingID" in item]
    assert shown == ["vessel"]
    report = srread(result.folder / "dicom" / "sr.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["vessel"]


def test_the_report_has_the_numbers_of_the_findings_and_refers_to_the_segments(result):
    report = srread(result.folder / "dicom" / "sr.dcm")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = {group.tracking_identifier: group for group in report.content.get_volumetric_roi_measurement_groups()}
    assert set(groups) == {"liver", "kidney_left", "vessel", "liver_tumor-1", "liver_tumor-2"}

    lesion, group = result.findings.lesions[0], groups["liver_tumor-1"]
    values = {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}
    assert values == {
        "Volume": (lesion.volume_ml * 1000, "mm3"),
        "Attenuation Coefficient": (lesion.mean_hu, "[hnsf'U]"),
        "Long axis": (lesion.longest_axial_diameter_mm, "mm"),
        "Short axis": (lesion.perpendicular_diameter_mm, "mm"),
    }
    assert values["Volume"][0] == 3 * 4 * 2 * 1.5 * 2.0 * 3.0
    assert (group.finding_type.meaning, group.finding_sites[0].value.meaning) == ("Neoplasm", "liver")
    assert groups["kidney_left"].finding_sites[0].laterality.meaning == "Left"

    segmentation = result.dataset("seg-lesions.dcm")
    segment = next(item for item in segmentation.SegmentSequence if item.TrackingID == "liver_tumor-1")
    assert group.tracking_uid == segment.TrackingUID
    assert group.referenced_segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
    assert list(group.referenced_segment.referenced_segment_numbers) == [segment.SegmentNumber]
    assert "Research use only" in str(report)


def test_regions_have_names_codes_and_keyhole_contours(result):
    rtstruct = result.dataset("rtstruct.dcm")
    assert rtstruct.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert [roi.ROIName for roi in rtstruct.StructureSetROISequence] == [
        structure.id for structure in (*organs(result.masks), *lesions(result.masks))
    ]
    types = {one.ROIObservationLabel: one.RTROIInterpretedType for one in rtstruct.RTROIObservationsSequence}
    assert (types["Liver"], types["Liver tumor 1"]) == ("ORGAN", "")
    liver = rtstruct.ROIContourSequence[0]
    assert list(liver.ROIDisplayColor) == [221, 130, 101]
    # One contour in each slice, although the liver has a hole in some: it is joined to the outline.
    assert len(liver.ContourSequence) == 7
    assert {contour.ContourGeometricType for contour in liver.ContourSequence} == {"CLOSED_PLANAR"}


def test_nothing_found_makes_no_object_but_the_report(tmp_path):
    result = write_result(tmp_path, masks={})
    assert [path.name for path in (result.folder / "dicom").iterdir()] == ["report.dcm"]
    assert (result.folder / "findings.json").exists()


def test_without_lesions_there_is_no_object_of_lesions(tmp_path):
    masks = {name: mask for name, mask in painted().items() if name != "liver_tumor"}
    result = write_result(tmp_path, masks=masks, outputs=(Output.SR,))
    # The report brings the segments that it refers to.
    assert sorted(path.name for path in (result.folder / "dicom").iterdir()) == ["seg-organs.dcm", "sr.dcm"]
    assert complaints(result.folder / "dicom" / "sr.dcm") == []


def test_lesions_alone_are_reported(tmp_path):
    result = write_result(tmp_path, masks={"kidney_tumor": painted()["liver_tumor"]})
    segmentation = result.dataset("seg-lesions.dcm")
    assert [item.TrackingID for item in segmentation.SegmentSequence] == ["kidney_tumor-1", "kidney_tumor-2"]
    # No host was found: the site is that of the label.
    assert segmentation.SegmentSequence[0].AnatomicRegionSequence[0].CodeMeaning == "Liver"
    assert PROVENANCE.bundle.sha256 == segmentation.DeviceSerialNumber
