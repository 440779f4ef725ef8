"""The page as a person uses it, in a browser; the test plays the worker."""

import json
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import TooFewSlices
from service.jobs.job import JobError, JobStatus
from service.request import DEFAULT_OUTPUTS, Mode, Output, PostProcessing, SegmentationRequest, SegType
from tests.support.api import Api, running_api
from tests.support.browser import HandWorker, picture, running_browser, share_of_hue
from tests.support.dicom_result import Result, write_result
from tests.support.jobs import wait_until
from tests.support.reporting import LABELS

AXE = Path(__file__).parents[2] / "service" / "web" / "node_modules" / "axe-core" / "axe.min.js"
COLORS = {label.name: label.color for label in LABELS}
PATIENCE_MS = 60_000
# A browser does not tell what it sends of files.
NOTE_FIELDS = """() => {
  const append = FormData.prototype.append;
  window.fields = [];
  FormData.prototype.append = function (...field) {
    fields.push(field[0]);
    append.apply(this, field);
  };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> Result:
    return write_result(tmp_path_factory.mktemp("result"), outputs=None)


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def worker(api: Api) -> HandWorker:
    return HandWorker(api.store, api.storage)


@pytest.fixture
def page(browser: Any, api: Api) -> Iterator[Any]:
    with browser.new_context(viewport={"width": 1000, "height": 700}) as context:
        yield watched(context.new_page(), api)


def watched(page: Any, api: Api) -> Any:
    """The page at the root, which must neither complain nor call another host while the test runs."""
    page.set_default_timeout(PATIENCE_MS)
    page.on("pageerror", lambda error: pytest.fail(f"script error: {error}"))
    page.on("console", lambda message: _no_violation(message.text))
    page.on("request", lambda request: _own(request.url, str(api.client.base_url)))
    page.goto(f"{api.client.base_url}/#key={api.key}")
    page.locator("#model option").first.wait_for(state="attached")
    assert api.key not in page.url
    return page


def _no_violation(text: str) -> None:
    assert "Content Security Policy" not in text, text


def _own(url: str, base: str) -> None:
    assert url.startswith((base, "data:", "blob:")), url


def choose(page: Any, *files: tuple[str, bytes]) -> None:
    """Choose files in the page's file input."""
    page.set_input_files(
        "#files", [{"name": name, "mimeType": "application/octet-stream", "buffer": content} for name, content in files]
    )


def shown_job(page: Any) -> str:
    """Id of the job that the page shows, from its address."""
    page.wait_for_url(re.compile(r"#[0-9a-f-]{36}$"))
    return str(page.url.partition("#")[2])


def show_result(page: Any, api: Api, worker: HandWorker, result: Result) -> str:
    """Open a job that has the result; returns its id."""
    job_id = str(api.submit()["id"])
    worker.start(job_id)
    worker.finish(job_id, result.folder)
    page.goto(f"{api.client.base_url}/#{job_id}")
    page.locator(".frame:not([aria-busy]) canvas").wait_for()
    page.locator("#place", has_text="HU").wait_for()
    return job_id


def test_a_study_goes_in_and_its_progress_is_seen_to_the_end(page, api, worker, result):
    with page.expect_response("**/events") as events:
        choose(page, ("Doe^Jane.zip", b"zipped slices"))
    assert events.value.headers["content-type"].startswith("text/event-stream")
    job_id = shown_job(page)
    assert [path.name for path in api.storage.upload_dir(job_id).iterdir()] == ["00001.zip"]
    page.get_by_text("queued, place 1").wait_for()
    worker.start(job_id)
    worker.progress(job_id, "inference", 40.0)
    page.get_by_text("running: inference").wait_for()
    page.locator("#percent", has_text="40 %").wait_for()
    assert page.title() == "40 % · Viscera"
    worker.finish(job_id, result.folder)
    page.locator("#place", has_text="HU").wait_for()
    assert page.title() == "Viscera"
    assert "Doe" not in page.url
    assert page.locator(".lesions button").all_inner_texts() == [
        f"Liver tumor {number}" for number in range(1, len(result.findings.lesions) + 1)
    ]


def test_organs_lie_over_the_ct_and_can_be_switched_off(page, api, worker, result):
    show_result(page, api, worker, result)
    canvas = page.locator("canvas")
    before = picture(canvas)
    assert share_of_hue(before, COLORS["liver"]) > 0.01
    assert share_of_hue(before, COLORS["liver_tumor"]) > 0.001
    page.locator(".legend").get_by_label("Liver", exact=True).uncheck()
    without = picture(canvas)
    assert share_of_hue(without, COLORS["liver"]) < 0.1 * share_of_hue(before, COLORS["liver"])
    assert share_of_hue(without, COLORS["liver_tumor"]) > 0.001
    page.locator(".legend").get_by_label("Lesions", exact=True).uncheck()
    assert share_of_hue(picture(canvas), COLORS["liver_tumor"]) == 0.0
    page.locator(".legend").get_by_label("Liver", exact=True).check()
    page.locator(".legend").get_by_label("Lesions", exact=True).check()
    assert share_of_hue(picture(canvas), COLORS["liver"]) == share_of_hue(before, COLORS["liver"])


def test_without_a_preview_the_overview_is_shown(page, api, worker, result, tmp_path):
    folder = Path(shutil.copytree(result.folder, tmp_path / "result"))
    listed = json.loads((folder / "artifacts.json").read_text())
    kept = [artifact for artifact in listed if not artifact["name"].startswith("preview/")]
    (folder / "artifacts.json").write_text(json.dumps(kept))
    job_id = str(api.submit()["id"])
    worker.start(job_id)
    worker.finish(job_id, folder)
    page.goto(f"{api.client.base_url}/#{job_id}")
    overview = page.locator(".stage img")
    overview.wait_for()
    assert overview.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_the_full_resolution_is_shown_on_request(page, api, worker, tmp_path):
    whole = write_result(tmp_path / "result", outputs=(*DEFAULT_OUTPUTS, Output.SCAN))
    show_result(page, api, worker, whole)
    assert page.get_by_role("button", name="Preview", exact=True).get_attribute("aria-pressed") == "true"
    full = page.get_by_role("button", name=re.compile(r"Full, \d+ kB"))
    with page.expect_response("**/artifacts/ct.nii.gz"), page.expect_response("**/artifacts/segmentation.nii.gz"):
        full.click()
    page.locator(".frame:not([aria-busy]) canvas").wait_for()
    page.locator("#place", has_text="HU").wait_for()
    assert full.get_attribute("aria-pressed") == "true"
    assert share_of_hue(picture(page.locator("canvas")), COLORS["liver"]) > 0.001


def test_without_the_scan_there_is_no_choice_of_resolution(page, api, worker, result):
    show_result(page, api, worker, result)
    assert page.get_by_role("button", name="Preview", exact=True).count() == 0


def test_a_click_on_a_lesion_goes_there_in_every_plane(page, api, worker, result):
    show_result(page, api, worker, result)
    for number, lesion in enumerate(result.findings.lesions, start=1):
        page.get_by_role("button", name=f"Liver tumor {number}", exact=True).click()
        place = page.locator("#place").inner_text()
        found = [float(value) for value in re.findall(r"-?[\d.]+(?=,| mm)", place)]
        start, end = lesion.longest_axis_lps_mm
        expected = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        spacing = max(result.volume.geometry.spacing_mm)
        assert found == pytest.approx(expected, abs=spacing)
        assert place.endswith("Liver tumor")
        ras = np.array([-found[0], -found[1], found[2], 1.0])
        there = (np.linalg.inv(result.volume.geometry.affine) @ ras)[:3]
        # The middle of an axis may lie on a border of voxels, and a tenth of a millimeter is what is shown.
        nearest = {tuple(np.rint(there + np.array(offset)).astype(int)) for offset in product((-0.1, 0.1), repeat=3)}
        assert re.search(r": (-?\d+) HU", place)[1] in {f"{result.volume.hu[voxel]:.0f}" for voxel in nearest}


def test_the_window_is_chosen_and_dragged(page, api, worker, result):
    show_result(page, api, worker, result)
    canvas = page.locator("canvas")
    level, width = page.get_by_label("Level"), page.get_by_label("Width")
    abdomen = picture(canvas)
    assert (level.input_value(), width.input_value()) == ("40", "400")
    page.get_by_role("button", name="Lung").click()
    assert (level.input_value(), width.input_value()) == ("-600", "1500")
    assert (picture(canvas) != abdomen).any()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 150)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 190, box["y"] + 180, steps=4)
    page.mouse.up(button="right")
    assert (level.input_value(), width.input_value()) != ("-600", "1500")


def test_the_keyboard_moves_the_crosshair(page, api, worker, result):
    show_result(page, api, worker, result)
    canvas = page.locator("canvas")
    canvas.focus()
    superior = []
    for _ in range(2):  # the first step goes to the center of a voxel
        page.keyboard.press("PageUp")
        superior.append(float(re.search(r"S (-?[\d.]+)", page.locator("#place").inner_text())[1]))
    assert superior[1] - superior[0] == pytest.approx(result.volume.geometry.spacing_mm[2], abs=0.2)


@pytest.mark.parametrize("name", ["dicom/seg-organs.dcm", "findings.json"])
def test_files_are_saved(page, api, worker, result, name):
    show_result(page, api, worker, result)
    with page.expect_download() as download:
        page.get_by_role("link", name=name).click()
    assert download.value.suggested_filename == name.rpartition("/")[2]
    assert Path(download.value.path()).read_bytes() == (result.folder / name).read_bytes()


def test_a_running_job_is_canceled_and_sent_again(page, api, worker):
    choose(page, ("ct.nii.gz", b"scan"))
    job_id = shown_job(page)
    worker.start(job_id)
    worker.progress(job_id, "inference", 10.0)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("stopping").wait_for()
    assert worker.progress(job_id, "inference", 11.0)
    worker.stop(job_id)
    page.get_by_text("This job was canceled.").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.wait_for_url(lambda url: "#" in url and not url.endswith(job_id))
    assert api.store.get(shown_job(page)).status is JobStatus.QUEUED


def test_a_bad_study_shows_its_sentence(page, api, worker):
    choose(page, ("ct.nii.gz", b"scan"))
    job_id = shown_job(page)
    worker.start(job_id)
    api.store.fail(job_id, "test-worker", JobError(TooFewSlices.code, TooFewSlices.title, "The series has 4 slices."))
    page.get_by_role("alert").filter(has_text=f"{TooFewSlices.title}: The series has 4 slices.").wait_for()


def test_a_refused_upload_shows_its_sentence_and_can_be_dismissed(page):
    page.route("**/v1/jobs", lambda route: route.continue_() if route.request.method == "GET" else route.abort())
    choose(page, ("ct.nii.gz", b"scan"))
    alert = page.locator(".upload [role=alert]")
    alert.wait_for()
    assert "connection was closed" in alert.inner_text()
    page.get_by_role("button", name="Dismiss").click()
    assert page.locator(".upload").count() == 0


def test_many_files_become_studies(page, api):
    before = len(api.dispatched)
    slices = [(f"IM{number:04d}", bytes([number])) for number in range(1, 4)]
    choose(page, ("a.nii.gz", b"1"), ("b.zip", b"2"), *slices, (".DS_Store", b"junk"))
    wait_until(lambda: len(api.dispatched) == before + 3, what="three jobs")
    stored = [sorted(path.name for path in api.storage.upload_dir(job).iterdir()) for job in api.dispatched[before:]]
    assert stored == [["00001.nii.gz"], ["00001.zip"], ["00001.dcm", "00002.dcm", "00003.dcm"]]


def test_choices_are_sent(page, api):
    page.get_by_text("Options", exact=True).click()
    page.locator("#mode").select_option("fast")
    page.locator("#target").select_option("labels")
    page.locator("#labels").get_by_label("Liver tumor").check()
    page.get_by_label("Overview picture").uncheck()
    page.get_by_label("Leave patient and dates out").check()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Series of a DICOM study").fill("1.2.840.1")
    page.get_by_label("Overlap of windows").fill("0.35")
    page.get_by_label("Rules that clean the masks").select_option("reference")
    page.get_by_label("DICOM SEG of organs").select_option("labelmap")
    choose(page, ("ct.nii.gz", b"scan"))
    first = shown_job(page)
    assert api.store.get(first).request == SegmentationRequest(
        mode=Mode.FAST,
        targets=("liver_tumor",),
        outputs=tuple(output for output in Output if output in DEFAULT_OUTPUTS - {Output.OVERVIEW}),
        deidentify=True,
        series="1.2.840.1",
        overlap=0.35,
        postprocessing=PostProcessing.REFERENCE,
        seg_type=SegType.LABELMAP,
    )
    choose(page, ("next.nii.gz", b"scan"))
    page.wait_for_url(lambda url: "#" in url and not url.endswith(first))
    assert api.store.get(shown_job(page)).request.series is None


def test_untouched_choices_are_left_to_the_service(page):
    page.evaluate(NOTE_FIELDS)
    choose(page, ("ct.nii.gz", b"scan"))
    shown_job(page)
    assert page.evaluate("fields") == ["model", "files"]


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("Series of a DICOM study", "1.2.x", "digits and dots only"),
        ("Overlap of windows", "0.95", "a number from 0 to 0.9"),
    ],
)
def test_a_wrong_choice_is_said_and_shown_before_anything_is_sent(page, api, label, value, sentence):
    before = len(api.dispatched)
    page.get_by_label(label).evaluate("(control, value) => { control.value = value; }", value)
    choose(page, ("ct.nii.gz", b"scan"))
    page.locator("#submit-problem", has_text=sentence).wait_for()
    assert page.get_by_label(label).evaluate(
        "control => control === document.activeElement && control.checkVisibility()"
    )
    page.get_by_label(label).fill("")
    choose(page, ("ct.nii.gz", b"scan"))
    shown_job(page)
    assert len(api.dispatched) == before + 1


def test_a_series_is_not_sent_with_several_studies(page, api):
    before = len(api.dispatched)
    page.get_by_label("Series of a DICOM study").evaluate("control => { control.value = '1.2.3'; }")
    choose(page, ("a.zip", b"1"), ("b.zip", b"2"))
    page.locator("#submit-problem", has_text="A series belongs to one study").wait_for()
    assert len(api.dispatched) == before


def test_a_job_is_deleted(page, api, worker, result):
    job_id = show_result(page, api, worker, result)
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    page.locator("#welcome").wait_for()
    assert page.locator(f'[data-job="{job_id}"]').count() == 0
    assert not api.storage.result_dir(job_id).exists()


def test_a_reload_and_a_second_tab_show_the_same_place(page, api, worker, result):
    job_id = show_result(page, api, worker, result)
    page.reload()
    page.locator("#place", has_text="HU").wait_for()
    assert shown_job(page) == job_id
    other = page.context.new_page()
    watched(other, api)
    other.locator(f'[data-job="{job_id}"]').click()
    other.locator("#place", has_text="HU").wait_for()
    assert shown_job(page) == shown_job(other) == job_id


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_window(browser, api, worker, result, scheme, width):
    if not AXE.is_file():
        pytest.skip("axe-core is missing: make web")
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True) as context:
        page = watched(context.new_page(), api)
        page.get_by_text("Options", exact=True).click()
        page.get_by_text("More", exact=True).click()
        show_result(page, api, worker, result)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        column, fields = (page.locator(part).bounding_box() for part in (".side", "#postprocessing"))
        assert fields["x"] + fields["width"] <= column["x"] + column["width"]
        page.add_script_tag(path=str(AXE))
        violations = page.evaluate("axe.run().then((found) => found.violations)")
    serious = [one for one in violations if one["impact"] in {"serious", "critical"}]
    assert not serious, json.dumps([(one["id"], [node["html"] for node in one["nodes"]]) for one in serious], indent=1)


def test_a_key_is_asked_for_until_it_is_right_and_kept_for_the_tab(browser, api):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(str(api.client.base_url))
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_role("button").click()
        dialog.get_by_text("That key was not accepted.").wait_for()
        dialog.get_by_label("API key").fill(api.key)
        dialog.get_by_role("button").click()
        page.locator("#model option").first.wait_for(state="attached")
        assert not dialog.is_visible()
        choose(page, ("ct.nii.gz", b"scan"))
        assert api.store.get(shown_job(page)).upload_files == 1
        page.reload()
        page.locator("#model option").first.wait_for(state="attached")
        other = context.new_page()
        other.goto(str(api.client.base_url))
        other.get_by_role("dialog").wait_for()


@pytest.mark.parametrize("way", ["drop", "input"])
def test_a_folder_is_one_study_and_each_archive_in_it_another(page, api, tmp_path, way):
    folder = tmp_path / "Doe^Jane"
    (folder / "series").mkdir(parents=True)
    for number in range(120):  # more than a browser tells of a folder at once
        (folder / "series" / f"IM{number}").write_bytes(b"slice")
    (folder / "ct.nii.gz").write_bytes(b"volume")
    before = len(api.dispatched)
    if way == "input":
        page.set_input_files("#folder", folder)
    else:
        devtools = page.context.new_cdp_session(page)
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 100, "y": 100, "data": data})
    wait_until(lambda: len(api.dispatched) == before + 2, what="two jobs")
    stored = [[path.name for path in api.storage.upload_dir(job).iterdir()] for job in api.dispatched[before:]]
    assert sorted(map(len, stored)) == [1, 120]
    assert not any("Doe" in name or "IM" in name for names in stored for name in names)
