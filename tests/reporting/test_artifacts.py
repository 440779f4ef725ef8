"""Files of a result, read back with the libraries that users read them with."""

import csv
import gzip
import hashlib
import json
from xml.etree import ElementTree as ET

import nibabel as nib
import numpy as np
import pytest

from service.errors import JobCanceled, VerificationFailed
from service.imaging.geometry import Geometry
from service.reporting.artifacts import paint_order, write_artifacts
from service.reporting.findings import measure
from service.reporting.nifti import mask_slabs, nifti_header, verify_nifti
from service.reporting.regions import label_regions
from service.reporting.schema import Findings
from tests.support.reporting import LABELS, PROVENANCE, abdomen, box_mask, organ, scan

SHAPE = (12, 11, 35)  # more slices than one slab
# float32 numbers, as an affine that comes from a NIfTI has.
AFFINE = np.array(
    [[-0.7, 0.1, 0.0, 10.3], [0.1, 0.7, 0.0, -4.1], [0.0, 0.0, 2.5, 7.7], [0, 0, 0, 1]], np.float32
).astype(np.float64)
PAINTED = {
    "liver": box_mask(SHAPE, (1, 9), (1, 9), (2, 34)),
    "vessel": box_mask(SHAPE, (3, 5), (3, 5), (0, 35)),
    "liver_tumor": box_mask(SHAPE, (2, 5), (2, 5), (14, 18)),
    "kidney_left": box_mask(SHAPE, (8, 11), (8, 11), (3, 4)),
}


@pytest.fixture
def result(tmp_path):
    volume, masks = scan(np.zeros(SHAPE, np.int16), PAINTED, AFFINE)
    findings = measure(volume, masks, PROVENANCE)
    return tmp_path, write_artifacts(tmp_path, volume, masks, findings), masks, findings


def test_every_file_is_listed_with_its_hash(result):
    folder, artifacts, _, _ = result
    listed = json.loads((folder / "artifacts.json").read_text())
    assert listed == [artifact.model_dump() for artifact in artifacts]
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {artifact.name for artifact in artifacts} == written - {"artifacts.json"}
    assert written == {
        "artifacts.json",
        "findings.csv",
        "findings.json",
        "key_images/liver_tumor-1.png",
        "overview.png",
        "preview/ct.nii.gz",
        "preview/labels.nii.gz",
        "report.html",
        "report.pdf",
        "segmentation.nii.gz",
        *(f"masks/{label.name}.nii.gz" for label in LABELS),
    }
    for artifact in artifacts:
        content = (folder / artifact.name).read_bytes()
        assert (artifact.bytes, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    media_types = {artifact.media_type for artifact in artifacts}
    assert media_types == {
        "application/gzip",
        "application/json",
        "application/pdf",
        "image/png",
        "text/csv",
        "text/html",
    }


def test_findings_come_back_equal(result):
    folder, _, _, findings = result
    assert Findings.model_validate_json((folder / "findings.json").read_text(encoding="utf-8")) == findings


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_every_mask_lies_on_the_source_grid(result, label):
    folder, _, masks, _ = result
    image = nib.load(folder / "masks" / f"{label.name}.nii.gz")
    assert image.shape == SHAPE
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.header["sform_code"] == 1
    assert image.header["qform_code"] == 1
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(AFFINE[:3, :3], axis=0), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj), masks.mask(label.name))


def test_label_map_values_and_precedence(result):
    folder, _, _, _ = result
    image = nib.load(folder / "segmentation.nii.gz")
    np.testing.assert_array_equal(image.affine, AFFINE)
    expected = np.zeros(SHAPE, np.uint8)
    expected[PAINTED["liver"]] = 6
    expected[PAINTED["vessel"]] = 15  # smaller than the liver
    expected[PAINTED["kidney_left"]] = 3  # the smallest organ: over the liver's corner
    expected[PAINTED["liver_tumor"]] = 27  # larger than the kidney, but a lesion
    found = np.asarray(image.dataobj)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_paint_order_of_equal_volumes_is_the_bundles(result):
    _, _, masks, findings = result
    order = [region.label.name for region in paint_order(label_regions(masks), findings)]
    assert order == ["liver", "vessel", "kidney_left", "kidney_right", "liver_tumor", "kidney_tumor"]


def test_label_names_and_colours_are_in_the_label_map(result):
    folder, _, _, _ = result
    for_nibabel, for_workbench = nib.load(folder / "segmentation.nii.gz").header.extensions
    assert (for_nibabel.get_code(), for_workbench.get_code()) == (0, 30)
    assert for_nibabel.get_content() == for_workbench.content
    rows = ET.fromstring(for_nibabel.get_content().rstrip(b"\0")).findall("VolumeInformation/LabelTable/Label")
    assert {int(row.get("Key")): row.text for row in rows} == {label.index: label.name for label in LABELS}
    liver = next(row for row in rows if row.text == "liver")
    assert [round(255 * float(liver.get(channel))) for channel in ("Red", "Green", "Blue")] == [221, 130, 101]


def test_same_masks_make_the_same_bytes(tmp_path):
    volume, masks = abdomen((8.0, 8.0, 10.0))
    findings = measure(volume, masks, PROVENANCE)
    first = write_artifacts(tmp_path / "a", volume, masks, findings)
    assert write_artifacts(tmp_path / "b", volume, masks, findings) == first


def test_gzip_is_plain_and_has_no_time(result):
    folder, _, _, _ = result
    content = (folder / "segmentation.nii.gz").read_bytes()
    assert content[:4] == b"\x1f\x8b\x08\x00"  # no name
    assert content[4:8] == b"\0\0\0\0"
    assert gzip.decompress(content)[344:348] == b"n+1\0"


def test_labels_beyond_the_32nd_are_measured_and_written_like_the_first(tmp_path):
    """The labels of the other tests behind 32 empty ones."""
    fillers = tuple(organ(100 + n, f"filler_{n}", (9, 9, 9), "78961009") for n in range(32))
    results = []
    for folder, labels in (("few", LABELS), ("many", fillers + LABELS)):
        volume, masks = scan(np.zeros(SHAPE, np.int16), PAINTED, AFFINE, labels=labels)
        findings = measure(volume, masks, PROVENANCE)
        write_artifacts(tmp_path / folder, volume, masks, findings)
        results.append(findings)
    few, many = results
    assert many.lesions == few.lesions
    assert many.lesions[0].host_organ == "liver"
    assert many.lesion_labels == few.lesion_labels
    assert many.organs[32:] == few.organs
    assert not any(one.present for one in many.organs[:32])
    for name in ("masks/liver_tumor.nii.gz", "masks/liver.nii.gz"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "few" / name).read_bytes()
    maps = [np.asarray(nib.load(tmp_path / folder / "segmentation.nii.gz").dataobj) for folder in ("few", "many")]
    np.testing.assert_array_equal(maps[1], maps[0])


def test_large_indices_need_two_bytes(tmp_path):
    labels = (organ(300, "liver", (200, 100, 100), "10200004"),)
    volume, masks = scan(np.zeros(SHAPE, np.int16), PAINTED, AFFINE, labels=labels)
    write_artifacts(tmp_path, volume, masks, measure(volume, masks, PROVENANCE))
    image = nib.load(tmp_path / "segmentation.nii.gz")
    assert image.get_data_dtype() == np.uint16
    assert np.asarray(image.dataobj).max() == 300


def test_a_shear_is_kept_in_the_sform_and_not_faked_in_the_qform():
    sheared = np.eye(4)
    sheared[1, 2] = 0.25
    header = nifti_header(Geometry(SHAPE, sheared), np.uint8, description="x")
    np.testing.assert_array_equal(header.get_sform(), sheared)
    assert (header["sform_code"], header["qform_code"]) == (1, 0)


def test_progress_can_stop_the_writing(tmp_path):
    volume, masks = scan(np.zeros(SHAPE, np.int16), PAINTED, AFFINE)

    def cancel(stage, fraction):
        raise JobCanceled("Stopped at the caller's request.")

    with pytest.raises(JobCanceled):
        write_artifacts(tmp_path, volume, masks, measure(volume, masks, PROVENANCE), progress=cancel)
    assert not (tmp_path / "artifacts.json").exists()


def test_a_nifti_whose_voxel_or_grid_differs_is_found_out(result):
    folder, _, masks, _ = result
    path = folder / "masks" / "liver.nii.gz"
    region = next(region for region in label_regions(masks) if region.label.name == "liver")
    verify_nifti(path, masks.geometry, mask_slabs(masks.geometry, region))

    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[-1, -1, -1] = 1
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    with pytest.raises(VerificationFailed, match=r"liver\.nii\.gz was read back"):
        verify_nifti(path, masks.geometry, mask_slabs(masks.geometry, region))

    voxels[-1, -1, -1] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine @ np.diag([-1.0, 1.0, 1.0, 1.0])), path)
    with pytest.raises(VerificationFailed):
        verify_nifti(path, masks.geometry, mask_slabs(masks.geometry, region))


def test_the_table_has_the_numbers_of_the_findings(result):
    folder, _, _, findings = result
    with (folder / "findings.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*(organ.label for organ in findings.organs), *(one.id for one in findings.lesions)]
    tumor = findings.lesions[0]
    assert float(rows["liver_tumor-1"]["volume_ml"]) == tumor.volume_ml == 3 * 3 * 4 * 0.5 * 2.5 / 1000
    assert float(rows["liver_tumor-1"]["longest_axial_diameter_mm"]) == tumor.longest_axial_diameter_mm
    assert rows["liver_tumor-1"]["host_organ"] == "liver"
    assert (rows["kidney_right"]["present"], rows["kidney_right"]["mean_hu"]) == ("false", "")
    assert rows["kidney_left"]["laterality"] == "Left"
