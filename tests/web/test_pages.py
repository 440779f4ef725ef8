"""Serving the page: the plain one, the built one, and what each may weigh."""

import gzip
import re
import shutil
from pathlib import Path

import pytest

from service.api import pages
from service.api.upload_form import UPLOAD_FORM
from service.request import DEFAULT_OUTPUTS, Output
from service.targets import GROUPS
from tests.support.api import Api, running_api

WEB = pages.WEB_FOLDER
BUILT = WEB / "built"
MEGABYTE = 1024**2
FORM = UPLOAD_FORM["content"]["multipart/form-data"]["schema"]["properties"]
LEFT_TO_PROGRAMS = {"file", "callback_url", "push", "priority", "reuse", "batch_id", "time_limit_seconds"}

needs_built_page = pytest.mark.skipif(not (BUILT / "index.html").is_file(), reason="the page is not built: make web")


@pytest.fixture
def api(tmp_path, monkeypatch) -> Api:
    """The API beside a folder with the plain page only."""
    shutil.copytree(WEB / "plain", tmp_path / "web" / "plain")
    monkeypatch.setattr(pages, "WEB_FOLDER", tmp_path / "web")
    with running_api(tmp_path) as running:
        yield running


def build(tmp_path: Path) -> None:
    """A page as the bundler leaves it."""
    folder = tmp_path / "web" / "built"
    folder.mkdir()
    contents = {"app.js": b"import './viewer-ABCD2345.js'", "viewer-ABCD2345.js": b"show()", "app.css": b"p{}"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    (folder / "index.html").write_text("built")


@pytest.mark.parametrize(
    "page", [WEB / "plain" / "index.html", WEB / "src" / "index.html"], ids=lambda path: path.parent.name
)
def test_the_page_says_its_limit_and_holds_nothing_inline(page):
    text = page.read_text()
    assert "Research use only" in text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|https?://", text)


def test_the_plain_page_is_whole(api):
    page = api.client.get("/").text
    for address in re.findall(r'(?:src|href)="(/web/[^"]+)"', page):
        assert api.client.get(address).status_code == 200
    script = api.client.get("/web/app.js").text
    assert set(re.findall(r'\$\("([\w-]+)"\)', script)) <= set(re.findall(r'id="([\w-]+)"', page))
    assert "innerHTML" not in script


def test_only_files_of_the_page_are_served(api, tmp_path):
    assert api.client.get("/web/index.html").status_code == 404
    assert api.client.get("/web/viewer-ABCD2345.js").status_code == 404
    build(tmp_path)
    assert api.client.get("/web/app.js.gz").status_code == 404
    assert api.client.get("/web/..%2fplain%2fapp.js").status_code == 404


def test_the_built_page_is_taken_as_soon_as_it_is_there(api, tmp_path):
    assert api.client.get("/").text != "built"
    build(tmp_path)
    assert api.client.get("/").text == "built"


def test_scripts_are_sent_compressed_and_chunks_are_kept_by_the_browser(api, tmp_path):
    build(tmp_path)
    chunk = api.client.get("/web/viewer-ABCD2345.js")
    entry = api.client.get("/web/app.js")
    plain = api.client.get("/web/app.js", headers={"Accept-Encoding": "identity"})
    assert (chunk.headers["Content-Encoding"], chunk.text) == ("gzip", "show()")
    assert "immutable" in chunk.headers["Cache-Control"]
    assert entry.headers["Cache-Control"] == "no-cache"
    assert "Content-Encoding" not in plain.headers
    assert plain.text == entry.text


def test_policy_allows_no_inline_code_and_no_other_host(api):
    policy = api.client.get("/").headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "//" not in policy
    assert "*" not in policy


@needs_built_page
def test_first_load_with_the_viewer_is_at_most_a_megabyte():
    index = (BUILT / "index.html").read_bytes()
    # What the page asks for when it opens and shows a result: static imports of each chunk, and the viewer.
    wanted, loaded = {"app.js", "app.css", "icon.svg"}, set()
    while wanted - loaded:
        name = (wanted - loaded).pop()
        loaded.add(name)
        if name.endswith(".js"):
            text = (BUILT / name).read_text()
            wanted |= set(re.findall(r'(?:from|import)\s*"\./([\w.-]+\.js)"', text))
            wanted |= set(re.findall(r'import\("\./(viewer-[\w.-]+\.js)"\)', text))
    assert any(name.startswith("viewer-") for name in loaded)
    sent = len(gzip.compress(index)) + sum((BUILT / f"{name}.gz").stat().st_size for name in loaded)
    assert sent <= MEGABYTE, sent


@needs_built_page
def test_nothing_built_calls_another_host_by_itself_or_writes_html():
    own = "".join(path.read_text() for path in (WEB / "src").glob("*.ts") if path.name != "openapi.ts")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|https?://", own)


def test_the_page_offers_every_output_with_its_default():
    source = (WEB / "src" / "options.ts").read_text()
    offered = dict(re.findall(r"^  (\w+): \[\"[^\"]+\", (true|false)\],$", source, re.MULTILINE))
    assert offered == {output.value: str(output in DEFAULT_OUTPUTS).lower() for output in Output}


def test_every_field_of_the_form_is_sent_by_the_page_or_left_to_programs():
    options = (WEB / "src" / "options.ts").read_text()
    [plain] = re.findall(r"PLAIN = \[(.*?)\]", options)
    sent = {*re.findall(r'"(\w+)"', plain), *re.findall(r'fields\.push\(\["(\w+)"', options)}
    sent |= set(re.findall(r'form\.append\("(\w+)"', (WEB / "src" / "uploads.ts").read_text()))
    assert sent == set(FORM) - LEFT_TO_PROGRAMS


def options_of(name: str) -> list[str]:
    """Values of a list of the page, from the first, which it opens with."""
    [listed] = re.findall(rf'<select id="{name}">(.*?)</select>', (WEB / "src" / "index.html").read_text(), re.DOTALL)
    assert "selected" not in listed
    return re.findall(r'<option value="(\w+)"', listed)


@pytest.mark.parametrize("name", [name for name in FORM if "enum" in FORM[name] and name not in LEFT_TO_PROGRAMS])
def test_the_page_offers_every_choice_and_opens_with_the_default(name):
    assert sorted(options_of(name)) == sorted(FORM[name]["enum"])
    assert options_of(name)[0] == FORM[name]["default"]


def test_the_page_offers_every_group_of_targets():
    *groups, labels = options_of("target")
    assert labels == "labels"
    assert {GROUPS[name] for name in groups} == set(GROUPS.values())
    assert groups[0] == "all"


def test_the_page_refuses_what_the_form_refuses():
    page = (WEB / "src" / "index.html").read_text()
    assert f'pattern="{FORM["series"]["pattern"].strip("^$")}"' in page
    assert f'min="{FORM["overlap"]["minimum"]}" max="{FORM["overlap"]["maximum"]}"' in page
