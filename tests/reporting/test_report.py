"""The report: all that was found, in text and pictures, on a page that calls nobody and in a PDF that opens."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from service.reporting.artifacts import write_artifacts
from service.reporting.findings import measure
from service.reporting.outputs import OutputPlan
from service.reporting.report.content import MOST_ROWS, Picture, Report, report_content
from service.reporting.report.html import render_html
from service.reporting.report.pdf import render_pdf
from service.reporting.schema import RESEARCH_USE_ONLY, Findings, FindingsWarning
from service.request import Output
from tests.support.dicom_result import complaints, write_result
from tests.support.reporting import LABELS, PROVENANCE, abdomen, box_mask, lesion, organ, scan

REPORTS = OutputPlan(frozenset({Output.HTML, Output.PDF}))
MARKUP = '<b>&amp; "x" <script>alert(1)</script> ŵ'


def _many(count: int):
    """A scan that is liver with `count` lesions, of all sizes up to 5 x 5 x 6 voxels."""
    shape = (8 * count, 30, 12)
    mask = np.zeros(shape, bool)
    for number in range(count):
        size = 1 + number % 5
        mask[8 * number + 1 : 8 * number + 1 + size, 5 : 5 + size, 2 : 3 + size] = True
    return scan(np.full(shape, 40, np.int16), {"liver": np.ones(shape, bool), "liver_tumor": mask})


def _long_names():
    host, long = organ(1, "o" * 64, (200, 0, 0), "1"), lesion(2, "long_label_" * 5, (0, 200, 0), ("o" * 64,))
    shape = (40, 40, 10)
    painted = {host.name: np.ones(shape, bool), long.name: box_mask(shape, (10, 20), (10, 20), (2, 6))}
    return scan(np.zeros(shape, np.int16), painted, labels=(host, long))


SCANS = {
    "organs and lesions": abdomen,
    "nothing": lambda: scan(np.full((20, 20, 12), 30, np.int16), {}),
    "30 lesions": lambda: _many(30),
    "long names": _long_names,
}


@pytest.fixture(scope="module", params=SCANS)
def written(request, tmp_path_factory) -> tuple[Path, Findings]:
    volume, masks = SCANS[request.param]()
    findings = measure(volume, masks, PROVENANCE)
    folder = tmp_path_factory.mktemp("report")
    write_artifacts(folder, volume, masks, findings, REPORTS)
    return folder, findings


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed: apt-get install poppler-utils")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def _squeezed(text: str) -> str:
    """Without white space: a long name is broken over lines."""
    return re.sub(r"\s", "", text)


class _Page(HTMLParser):
    """The text of a page, its tags, and what they refer to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data):
        self.text += data


def _expected(findings: Findings) -> list[str]:
    ids = [found.id for found in findings.lesions]
    return ids + [part for one in findings.organs if one.present for part in (one.display_name, f"{one.volume_ml:.2f}")]


def test_every_lesion_and_organ_is_in_the_page(written):
    folder, findings = written
    text = _squeezed(_Page((folder / "report.html").read_text()).text)
    assert [word for word in _expected(findings) if _squeezed(word) not in text] == []
    assert findings.provenance.mask_sha256 in text


def test_every_lesion_and_organ_is_in_the_pdf(written):
    folder, findings = written
    text = _squeezed(_run("pdftotext", "-raw", str(folder / "report.pdf"), "-"))
    assert [word for word in _expected(findings) if _squeezed(word) not in text] == []
    assert findings.provenance.mask_sha256 in text


def test_every_page_of_the_pdf_says_research_use_only(written):
    folder, findings = written
    pages = _run("pdftotext", "-layout", str(folder / "report.pdf"), "-").split("\f")[:-1]
    assert len(pages) >= 2 + sum(summary.count > 0 for summary in findings.lesion_labels)
    assert all(RESEARCH_USE_ONLY in page for page in pages)
    assert [page.splitlines()[-1].split()[-2:] for page in map(str.rstrip, pages)] == [
        ["Page", str(number)] for number in range(1, len(pages) + 1)
    ]
    assert "Summary" not in pages[1]


def test_the_pdf_is_drawn_inside_its_margins(written, tmp_path):
    folder, _ = written
    _run("pdftoppm", "-r", "50", "-gray", str(folder / "report.pdf"), str(tmp_path / "page"))
    pages = sorted(tmp_path.glob("page*.pgm"))
    assert pages
    for page in pages:
        pixels = np.asarray(Image.open(page))
        margin = round(14 / 25.4 * 50)
        assert (pixels < 200).any()
        assert pixels[:, :margin].min() == 255
        assert pixels[:, -margin:].min() == 255
        assert pixels[: margin // 2].min() == 255


def test_pictures_keep_their_pixels_in_the_pdf(written):
    folder, findings = written
    rows = [line.split() for line in _run("pdfimages", "-list", str(folder / "report.pdf")).splitlines()[2:]]
    sizes = [int(row[3]) for row in rows]
    assert sizes == [1600] + [880] * len(findings.lesions)
    assert min(int(row[12]) for row in rows) >= 200  # pixels per inch


def test_the_page_has_no_script_and_calls_no_host(written):
    folder, findings = written
    source = (folder / "report.html").read_text()
    page = _Page(source)
    assert not page.tags & {"script", "iframe", "object", "embed", "form", "link", "a", "base"}
    assert len(page.references) == 1 + len(findings.lesions)
    assert all(reference.startswith("data:image/jpeg;base64,") for reference in page.references)
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source


def _report(findings: Findings, labels=LABELS) -> Report:
    return report_content(findings, labels, Picture.of(Image.new("RGB", (1600, 900)), MARKUP), {})


def _hostile() -> tuple[Findings, tuple]:
    """Each text that comes from outside, the bundle's names among them, is markup."""
    labels = tuple(label.model_copy(update={"display_name": MARKUP}) for label in LABELS)
    shape = (20, 20, 12)
    volume, masks = scan(
        np.zeros(shape, np.int16), {"liver_tumor": box_mask(shape, (3, 9), (3, 9), (3, 9))}, None, labels
    )
    findings = measure(volume, masks, PROVENANCE.model_copy(update={"settings": {"series": MARKUP}, "engine": MARKUP}))
    return findings.model_copy(
        update={"warnings": (FindingsWarning(code="x", message=MARKUP, subject=MARKUP),)}
    ), labels


def test_markup_in_values_is_text_in_the_page():
    page = _Page(render_html(_report(*_hostile())))
    assert not page.tags & {"script", "b"}
    assert page.text.count(MARKUP) > 5


def test_markup_in_values_is_text_in_the_pdf(tmp_path):
    (tmp_path / "report.pdf").write_bytes(render_pdf(_report(*_hostile())))
    text = _squeezed(_run("pdftotext", "-raw", str(tmp_path / "report.pdf"), "-"))
    assert text.count(_squeezed(MARKUP.replace("ŵ", "?"))) > 5  # the font has no such letter


def test_equal_findings_make_equal_reports():
    volume, masks = abdomen((5.0, 5.0, 5.0))
    report = _report(measure(volume, masks, PROVENANCE))
    assert render_pdf(report) == render_pdf(report)
    assert render_html(report) == render_html(report)


def test_the_summary_counts_and_says_once_what_is_cut():
    shape = (20, 20, 12)
    painted = {"liver": np.ones(shape, bool), "liver_tumor": box_mask(shape, (3, 9), (3, 9), (3, 9))}
    volume, masks = scan(np.zeros(shape, np.int16), painted)
    said = _report(measure(volume, masks, PROVENANCE)).summary.paragraphs
    assert said[0] == "1 lesion and 1 of 4 organs were found."
    assert sum("field of view" in line.lower() for line in said) == 1


def test_the_summary_is_one_page_however_much_there_is_to_say(tmp_path):
    volume, masks = abdomen((5.0, 5.0, 5.0))
    findings = measure(volume, masks, PROVENANCE)
    long = tuple(FindingsWarning(code="memory-low", message="A word. " * 300) for _ in range(9))
    (tmp_path / "report.pdf").write_bytes(render_pdf(_report(findings.model_copy(update={"warnings": long}))))
    pages = _run("pdftotext", "-raw", str(tmp_path / "report.pdf"), "-").split("\f")
    assert "CT segmentation report" in pages[0]
    assert "Liver tumor\n2 found" in pages[1]


def test_noise_is_listed_up_to_a_bound_and_the_rest_is_said():
    volume, masks = abdomen((5.0, 5.0, 5.0))
    findings = measure(volume, masks, PROVENANCE)
    noise = tuple(
        findings.lesions[0].model_copy(update={"id": f"liver_tumor-{number}"}) for number in range(1, MOST_ROWS + 8)
    )
    group = _report(findings.model_copy(update={"lesions": noise})).sections[0]
    assert len(group.tables[0].rows) == MOST_ROWS
    assert "the other 7 are in findings.json" in group.paragraphs[1]


def test_a_picture_is_kept_as_it_is():
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    picture = Picture.of(image, "red")
    again = np.asarray(Image.open(BytesIO(picture.jpeg))).astype(int)
    assert picture.size == (64, 32)
    assert np.abs(again - (255, 0, 0)).max() < 4


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    return write_result(tmp_path_factory.mktemp("dicom"), outputs=(Output.PDF, Output.ENCAPSULATED_PDF))


def test_the_dicom_document_holds_the_pdf_in_the_study(dicom):
    document, source = dicom.dataset("report.dcm"), pydicom.dcmread(dicom.series[0])
    pdf = (dicom.folder / "report.pdf").read_bytes()
    assert document.EncapsulatedDocument[: document.EncapsulatedDocumentLength] == pdf
    assert len(document.EncapsulatedDocument) % 2 == 0
    for keyword in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyID"):
        assert document[keyword].value == source[keyword].value
    assert document.SeriesInstanceUID != source.SeriesInstanceUID
    assert "Research use only" in document.DocumentTitle
    assert {item.ReferencedSOPInstanceUID for item in document.SourceInstanceSequence} == set(
        dicom.volume.sop_instance_uids
    )


def test_dciodvfy_has_no_complaint(dicom):
    assert complaints(dicom.folder / "dicom" / "report.dcm") == []


def test_no_patient_is_in_the_reports(tmp_path):
    result = write_result(tmp_path, outputs=(Output.HTML, Output.PDF, Output.ENCAPSULATED_PDF), deidentify=True)
    source = pydicom.dcmread(result.series[0])
    identifying = [str(source[keyword].value) for keyword in ("PatientName", "PatientID", "StudyDate")]
    assert all(identifying)
    page = (result.folder / "report.html").read_text()
    text = _run("pdftotext", "-raw", str(result.folder / "report.pdf"), "-")
    assert [value for value in identifying if value in _Page(page).text + text] == []
    document = result.dataset("report.dcm")
    assert (document.PatientName, document.PatientID, document.StudyDate) == ("", "", "")
    assert document.PatientIdentityRemoved == "YES"
    assert complaints(result.folder / "dicom" / "report.dcm") == []
