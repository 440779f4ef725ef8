"""A small, valid findings document."""

from typing import Any

from service.reporting.schema import Findings

SCT = {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical structure"}
CODES = {"category": SCT, "type": {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}}
BOX = {"start": (0, 0, 0), "stop": (2, 2, 2)}


def example_findings() -> dict[str, Any]:
    """A liver of 1512 ml with one tumour, no spleen, and one warning."""
    liver = {
        "label": "liver",
        "display_name": "Liver",
        "codes": CODES,
        "present": True,
        "volume_ml": 1512.25,
        "mean_hu": 104.2,
        "sd_hu": 18.9,
        "bounding_box_voxel": BOX,
        "cut_by_field_of_view": True,
        "cut_sides": ("superior",),
    }
    absent = {"volume_ml": 0.0, "mean_hu": None, "sd_hu": None, "bounding_box_voxel": None, "present": False}
    uncut = {"cut_by_field_of_view": False, "cut_sides": ()}
    spleen = {**liver, **absent, **uncut, "label": "spleen", "display_name": "Spleen"}
    tumor = {
        "id": "liver_tumor-1",
        "label": "liver_tumor",
        "display_name": "Liver tumor",
        "kind": "tumor",
        "codes": CODES,
        "host_organ": "liver",
        "host_overlap_fraction": 0.98,
        "volume_ml": 8.1812,
        "mean_hu": 61.0,
        "sd_hu": 14.8,
        "longest_axial_diameter_mm": 27.41,
        "perpendicular_diameter_mm": 22.05,
        "longest_axis_lps_mm": ((0, 0, 0), (27.41, 0, 0)),
        "perpendicular_axis_lps_mm": ((0, 0, 0), (0, 22.05, 0)),
        "slice_index": 1,
        "sop_instance_uid": None,
        "centroid_lps_mm": (0, 0, 0),
        "centroid_voxel": (1, 1, 1),
        "bounding_box_voxel": BOX,
        **uncut,
        "also_labelled": (),
        "mean_probability": 0.81,
        "max_probability": 0.97,
    }
    summary = {
        "label": "liver_tumor",
        "display_name": "Liver tumor",
        "kind": "tumor",
        "codes": CODES,
        "count": 1,
        "total_volume_ml": 8.1812,
    }
    source = {
        "format": "nifti",
        "shape": (2, 2, 2),
        "spacing_mm": (1, 1, 1),
        "orientation": ("R", "A", "S"),
        "slice_axis": "k",
    }
    provenance = {
        "bundle": {"name": "viscera-compact", "version": "1.0.0", "sha256": "0" * 64},
        "software_version": "0.1.0",
        "engine": "openvino",
        "precision": "fp32",
        "settings": {},
        "input_sha256": "1" * 64,
        "mask_sha256": "2" * 64,
    }
    document = {
        "source": source,
        "organs": [liver, spleen],
        "lesion_labels": [summary],
        "lesions": [tumor],
        "warnings": [{"code": "organ-cut-by-field-of-view", "message": "The liver is cut.", "subject": "liver"}],
        "provenance": provenance,
    }
    return Findings.model_validate(document).model_dump(mode="json")
