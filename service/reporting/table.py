"""findings.csv: every organ and every lesion in a row, for spreadsheets and statistics.

The columns and their units are those of findings.json; an empty field is its null. Comma separated, UTF-8, one header
row (RFC 4180).
"""

import csv
from pathlib import Path
from typing import Final

from service.reporting.schema import Findings, LesionFinding, OrganFinding

COLUMNS: Final = (
    "id",
    "label",
    "display_name",
    "kind",
    "code_scheme",
    "code_value",
    "code_meaning",
    "laterality",
    "present",
    "host_organ",
    "host_overlap_fraction",
    "also_labelled",
    "volume_ml",
    "mean_hu",
    "sd_hu",
    "longest_axial_diameter_mm",
    "perpendicular_diameter_mm",
    "slice_index",
    "sop_instance_uid",
    "centroid_x_lps_mm",
    "centroid_y_lps_mm",
    "centroid_z_lps_mm",
    "mean_probability",
    "max_probability",
    "cut_by_field_of_view",
    "cut_sides",
)


def write_table(path: Path, findings: Findings) -> None:
    """Write the organs, then the lesions, in the order of the findings.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\r\n")
        table.writeheader()
        table.writerows(_common(organ) | _organ(organ) for organ in findings.organs)
        table.writerows(_common(lesion) | _lesion(lesion) for lesion in findings.lesions)


def _common(finding: OrganFinding | LesionFinding) -> dict[str, object]:
    codes = finding.codes
    return {
        "label": finding.label,
        "display_name": finding.display_name,
        "code_scheme": codes.type.scheme,
        "code_value": codes.type.value,
        "code_meaning": codes.type.meaning,
        "laterality": "" if codes.laterality is None else codes.laterality.meaning,
        "volume_ml": finding.volume_ml,
        "mean_hu": finding.mean_hu,
        "sd_hu": finding.sd_hu,
        "cut_by_field_of_view": _truth(finding.cut_by_field_of_view),
        "cut_sides": " ".join(finding.cut_sides),
    }


def _organ(organ: OrganFinding) -> dict[str, object]:
    return {"id": organ.label, "kind": "organ", "present": _truth(organ.present)}


def _lesion(lesion: LesionFinding) -> dict[str, object]:
    x, y, z = lesion.centroid_lps_mm
    return {
        "id": lesion.id,
        "kind": lesion.kind,
        "present": _truth(True),
        "host_organ": lesion.host_organ,
        "host_overlap_fraction": lesion.host_overlap_fraction,
        "also_labelled": " ".join(lesion.also_labelled),
        "longest_axial_diameter_mm": lesion.longest_axial_diameter_mm,
        "perpendicular_diameter_mm": lesion.perpendicular_diameter_mm,
        "slice_index": lesion.slice_index,
        "sop_instance_uid": lesion.sop_instance_uid,
        "centroid_x_lps_mm": x,
        "centroid_y_lps_mm": y,
        "centroid_z_lps_mm": z,
        "mean_probability": lesion.mean_probability,
        "max_probability": lesion.max_probability,
    }


def _truth(value: bool) -> str:
    return "true" if value else "false"
