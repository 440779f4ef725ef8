"""The pictures of a result and the reports that show them: each picture is drawn once, whoever wants it.

overview.png             three planes with coloured contours
key_images/<lesion>.png  the slice each of the largest lesions was measured in, with its diameters
report.html              all of it on one page for a browser
report.pdf               the same on paper
dicom/report.dcm         the PDF in the study of its source, for DICOM input
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image

from service.imaging.volume import Volume
from service.inference.masks import Masks
from service.reporting.dicom.document import write_document
from service.reporting.dicom.objects import Authorship
from service.reporting.key_images import draw_key_images
from service.reporting.outputs import REPORTS, OutputPlan, Task, pictured_lesions
from service.reporting.overview import draw_overview
from service.reporting.report.content import Picture, Report, report_content
from service.reporting.report.html import render_html
from service.reporting.report.pdf import render_pdf
from service.reporting.schema import Findings
from service.request import Output

OVERVIEW: Final = "overview.png"
KEY_IMAGES: Final = "key_images"
HTML: Final = "report.html"
PDF: Final = "report.pdf"
ENCAPSULATED_PDF: Final = "dicom/report.dcm"


def key_image_artifact(lesion_id: str) -> str:
    """Artifact name of one lesion's key image."""
    return f"{KEY_IMAGES}/{lesion_id}.png"


def picture_tasks(out_dir: Path, volume: Volume, masks: Masks, findings: Findings, plan: OutputPlan) -> Iterator[Task]:
    """What writes the pictures and reports that are wanted; key images only where a lesion was found.

    The task raises VerificationFailed when the DICOM object, read back, is not the report, and OSError.
    """
    names = tuple(_names(findings, plan))
    if not names:
        return
    for name in names:
        (out_dir / name).parent.mkdir(exist_ok=True)
    yield names, lambda: _write(out_dir, volume, masks, findings, plan)


def _names(findings: Findings, plan: OutputPlan) -> Iterator[str]:
    if Output.OVERVIEW in plan.wanted:
        yield OVERVIEW
    if Output.KEY_IMAGES in plan.wanted:
        yield from (key_image_artifact(lesion.id) for lesion in pictured_lesions(findings))
    if Output.HTML in plan.wanted:
        yield HTML
    if Output.PDF in plan.wanted:
        yield PDF
    if Output.ENCAPSULATED_PDF in plan.wanted and plan.source is not None:
        yield ENCAPSULATED_PDF


def _write(out_dir: Path, volume: Volume, masks: Masks, findings: Findings, plan: OutputPlan) -> None:
    with_report = bool(plan.wanted & REPORTS)
    key_pictures: dict[str, Picture] = {}
    if with_report or Output.KEY_IMAGES in plan.wanted:
        for lesion, image in draw_key_images(volume, masks, findings):
            if Output.KEY_IMAGES in plan.wanted:
                _save(image, out_dir / key_image_artifact(lesion.id))
            if with_report:
                key_pictures[lesion.id] = Picture.of(image, f"Key image of {lesion.id}")
    if with_report or Output.OVERVIEW in plan.wanted:
        overview = draw_overview(volume, masks, findings)
        if Output.OVERVIEW in plan.wanted:
            _save(overview, out_dir / OVERVIEW)
        if with_report:
            picture = Picture.of(overview, "Three planes of the scan with the contours of what was found")
            _write_reports(out_dir, report_content(findings, masks.labels, picture, key_pictures), findings, plan)


def _save(image: Image.Image, path: Path) -> None:
    """As PNG; at this level pictures of CT are about as small as at the usual one, sooner."""
    image.save(path, compress_level=3)


def _write_reports(out_dir: Path, report: Report, findings: Findings, plan: OutputPlan) -> None:
    if Output.HTML in plan.wanted:
        (out_dir / HTML).write_text(render_html(report), encoding="utf-8")
    if plan.wanted & {Output.PDF, Output.ENCAPSULATED_PDF}:
        pdf = render_pdf(report)
        if Output.PDF in plan.wanted:
            (out_dir / PDF).write_bytes(pdf)
        if Output.ENCAPSULATED_PDF in plan.wanted and plan.source is not None:
            authorship = Authorship(plan.source, findings.provenance, plan.deidentify)
            write_document(out_dir / ENCAPSULATED_PDF, authorship, pdf)
