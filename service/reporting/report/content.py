"""What a report says: one text for the HTML page and the PDF, made from the findings alone.

It holds no name, id or date of a patient: the findings have none.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image

from service.inference.manifest import Label
from service.reporting.cautions import CUT_BY_FIELD_OF_VIEW
from service.reporting.contours import Color
from service.reporting.schema import Findings, LesionFinding, LesionLabelSummary, Severity

MOST_ROWS: Final = 500
"""Lesions of a kind that are listed; the rest is said. Noise can make many thousands."""

_MOST_POINTS = 6  # of what to look at, on the summary
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Picture:
    """A picture as JPEG; `size` is width and height in pixels."""

    jpeg: bytes
    size: tuple[int, int]
    caption: str

    @classmethod
    def of(cls, image: Image.Image, caption: str) -> "Picture":
        """An RGB image, its colours at full resolution."""
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return cls(buffer.getvalue(), image.size, caption)


@dataclass(frozen=True)
class Column:
    """`share` of the table's width, relative to the other columns; numbers stand at the right."""

    head: str
    share: float = 1.0
    numbers: bool = False


@dataclass(frozen=True)
class Row:
    """As many cells as columns; the colour of a label stands before the first."""

    cells: tuple[str, ...]
    color: Color | None = None


@dataclass(frozen=True)
class Table:
    """Rows under heads; columns without heads make a list of facts."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def has_head(self) -> bool:
        """Whether a column has a head."""
        return any(column.head for column in self.columns)


@dataclass(frozen=True)
class Section:
    """A part of the report: text, then tables, then pictures, two beside each other."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    new_page: bool = False  #: begins on a page of its own


@dataclass(frozen=True)
class Report:
    """The summary, with the overview, and the sections after it."""

    title: str
    subtitle: str
    statement: str
    summary: Section
    sections: tuple[Section, ...]


_FACTS: Final = (Column("", 1.0), Column("", 4.0))
_CHECKS: Final = (Column("Check", 1.3), Column("Severity", 0.7), Column("What was found", 4.0))
_WARNINGS: Final = (Column("Warning", 1.3), Column("About", 1.2), Column("What to know", 3.5))
_ORGANS: Final = (
    Column("Organ", 2.0),
    Column("Volume, ml", numbers=True),
    Column("Mean HU", numbers=True),
    Column("SD HU", numbers=True),
    Column("Cut by the field of view", 1.8),
)
_LESIONS: Final = (
    Column("Lesion", 2.6),
    Column("In", 1.7),
    Column("Volume, ml", numbers=True),
    Column("Longest, mm", 1.05, numbers=True),
    Column("Perp., mm", 1.05, numbers=True),
    Column("Mean HU", 0.8, numbers=True),
    Column("Prob.", 0.8, numbers=True),
    Column("Slice", 0.7, numbers=True),
    Column("Note", 1.5),
)
_KINDS: Final = (
    Column("Lesions", 2.0),
    Column("Found", numbers=True),
    Column("Together, ml", numbers=True),
    Column("Longest diameter, mm", 1.4, numbers=True),
)


def report_content(
    findings: Findings, labels: Sequence[Label], overview: Picture, key_images: Mapping[str, Picture]
) -> Report:
    """The report of the findings; `key_images` are by lesion id."""
    bundle = findings.provenance.bundle
    colors = {label.name: label.color for label in labels}
    return Report(
        title="CT segmentation report",
        subtitle=f"Viscera {findings.provenance.software_version}, model {bundle.name} {bundle.version}",
        statement=findings.statement,
        summary=_summary(findings, colors, overview),
        sections=(
            *(
                _group(summary, findings, labels, colors, key_images)
                for summary in findings.lesion_labels
                if summary.count
            ),
            _organs(findings, colors),
            _quality(findings),
            _provenance(findings),
        ),
    )


def _summary(findings: Findings, colors: Mapping[str, Color], overview: Picture) -> Section:
    present = sum(organ.present for organ in findings.organs)
    lesions = "1 lesion" if len(findings.lesions) == 1 else f"{len(findings.lesions)} lesions"
    said = [f"{lesions} and {present} of {len(findings.organs)} organs were found."]
    missed = [summary.display_name for summary in findings.lesion_labels if not summary.count]
    if not findings.lesion_labels:
        said.append("No kind of lesion was looked for.")
    elif missed:
        said.append(f"Looked for, none found: {', '.join(missed)}.")
    points = [check.message for check in findings.quality if check.severity is not Severity.INFO]
    # Organs that are cut are in one of the checks.
    points += [one.message for one in findings.warnings if one.code != f"organ-{CUT_BY_FIELD_OF_VIEW}"]
    said += [f"Note: {point}" for point in points[:_MOST_POINTS]]
    if len(points) > _MOST_POINTS:
        said.append(f"{len(points) - _MOST_POINTS} more notes stand under Quality of the scan.")
    longest: dict[str, float] = {}
    for lesion in findings.lesions:
        longest[lesion.label] = max(longest.get(lesion.label, 0.0), lesion.longest_axial_diameter_mm)
    kinds = tuple(
        Row(
            (one.display_name, str(one.count), f"{one.total_volume_ml:.2f}", f"{longest[one.label]:.1f}"),
            colors[one.label],
        )
        for one in findings.lesion_labels
        if one.count
    )
    tables = (Table(_FACTS, tuple(_scan_facts(findings))), *([Table(_KINDS, kinds)] if kinds else []))
    return Section("Summary", tuple(said), tables, (overview,))


def _scan_facts(findings: Findings) -> Iterable[Row]:
    source = findings.source
    shape = " x ".join(str(size) for size in source.shape)
    spacing = " x ".join(f"{step:.2f}" for step in source.spacing_mm)
    yield Row(("Scan", f"{source.format.upper()}, {shape} voxels of {spacing} mm, axes {''.join(source.orientation)}"))
    for check in findings.quality:
        if check.code in ("body-region", "contrast-phase"):
            yield Row((_title(check.code), check.message))
    if findings.provenance.created is not None:
        yield Row(("Made", f"{findings.provenance.created:%Y-%m-%d %H:%M} UTC"))


def _group(
    summary: LesionLabelSummary,
    findings: Findings,
    labels: Sequence[Label],
    colors: Mapping[str, Color],
    key_images: Mapping[str, Picture],
) -> Section:
    """One kind of lesion."""
    names = {label.name: label.display_name for label in labels}
    found = [lesion for lesion in findings.lesions if lesion.label == summary.label]
    said = [f"{summary.count} found, {summary.total_volume_ml:.2f} ml together."]
    if len(found) > MOST_ROWS:
        said.append(f"The {MOST_ROWS} largest are listed; the other {len(found) - MOST_ROWS} are in findings.json.")
    pictures = tuple(key_images[lesion.id] for lesion in found if lesion.id in key_images)
    if pictures and len(pictures) < len(found):
        said.append(f"{len(pictures)} of them are pictured: the largest of the scan.")
    rows = tuple(Row(_lesion_cells(lesion, names), colors[lesion.label]) for lesion in found[:MOST_ROWS])
    return Section(summary.display_name, tuple(said), (Table(_LESIONS, rows),), pictures, new_page=True)


def _lesion_cells(lesion: LesionFinding, names: Mapping[str, str]) -> tuple[str, ...]:
    notes = ["cut by the field of view"] if lesion.cut_by_field_of_view else []
    notes += [f"also called {names[other]}" for other in lesion.also_labelled]
    return (
        lesion.id,
        "-" if lesion.host_organ is None else names[lesion.host_organ],
        f"{lesion.volume_ml:.2f}",
        f"{lesion.longest_axial_diameter_mm:.1f}",
        f"{lesion.perpendicular_diameter_mm:.1f}",
        f"{lesion.mean_hu:.0f}",
        "-" if lesion.mean_probability is None else f"{lesion.mean_probability:.2f}",
        str(lesion.slice_index),
        "; ".join(notes),
    )


def _organs(findings: Findings, colors: Mapping[str, Color]) -> Section:
    rows = tuple(
        Row(
            (
                organ.display_name,
                f"{organ.volume_ml:.2f}",
                _rounded(organ.mean_hu),
                _rounded(organ.sd_hu),
                ", ".join(organ.cut_sides),
            ),
            colors[organ.label],
        )
        for organ in findings.organs
        if organ.present
    )
    absent = [organ.display_name for organ in findings.organs if not organ.present]
    said = [] if rows else ["No organ was found."]
    if absent:
        said.append(f"Not found: {', '.join(absent)}.")
    if any(organ.cut_by_field_of_view for organ in findings.organs):
        said.append("An organ that is cut goes on outside the scan: its volume is a lower bound.")
    return Section("Organ volumes", tuple(said), (Table(_ORGANS, rows),) if rows else (), new_page=True)


def _quality(findings: Findings) -> Section:
    checks = tuple(Row((_title(one.code), one.severity.value, one.message)) for one in findings.quality)
    warnings = tuple(Row((_title(one.code), one.subject or "scan", one.message)) for one in findings.warnings)
    said = () if warnings else ("There are no warnings.",)
    tables = (*([Table(_CHECKS, checks)] if checks else []), *([Table(_WARNINGS, warnings)] if warnings else []))
    return Section("Quality of the scan", said, tables)


def _provenance(findings: Findings) -> Section:
    provenance = findings.provenance
    facts = {
        "Model": f"{provenance.bundle.name} {provenance.bundle.version}",
        "SHA-256 of the model": provenance.bundle.sha256,
        "Program": f"{provenance.software} {provenance.software_version}",
        "Engine": f"{provenance.engine}, {provenance.precision}",
        "Settings": json.dumps(provenance.settings),
        "SHA-256 of the input": provenance.input_sha256,
        "SHA-256 of the masks": provenance.mask_sha256,
    }
    for one in findings.series:
        if one.chosen:
            number = "" if one.series_number is None else f"number {one.series_number}, "
            facts["Series"] = f"{number}{one.images} images. {one.reason}"
    return Section(
        "How the result was made", tables=(Table(_FACTS, tuple(Row((name, fact)) for name, fact in facts.items())),)
    )


def _title(code: str) -> str:
    """A code as words."""
    return code.replace("-", " ").capitalize().replace("Hu ", "HU ")


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
