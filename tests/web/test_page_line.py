"""The page before a whole service: a phantom goes in as a zip, and its organs are seen over its CT."""

import re

import pytest

from service.cli.local_key import read_local_key
from service.inference.bundle import default_bundle_path, open_bundle
from tests.support.browser import picture, running_browser, share_of_hue
from tests.support.phantom_zip import write_phantom_zip
from tests.support.service_process import running_service

PATIENCE_MS = 240_000


@pytest.mark.slow
def test_a_phantom_is_segmented_and_seen(tmp_path):
    colors = {label.name: label.color for label in open_bundle(default_bundle_path()).manifest.labels}
    study = write_phantom_zip(tmp_path, (4.0, 4.0, 5.0))
    with running_browser() as browser, running_service(tmp_path / "data") as (viscera, _):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{viscera._http.base_url}/#key={read_local_key(tmp_path / 'data')}")
        page.locator("#model option").first.wait_for(state="attached")
        page.set_input_files("#files", study)
        page.wait_for_url(re.compile("#"))
        page.locator("#percent", has_text=re.compile(r"[1-9]\d? %")).wait_for()
        page.locator("#place", has_text="HU").wait_for()
        page.locator(".frame:not([aria-busy])").wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="dicom/seg-organs.dcm").click()
        assert download.value.path().stat().st_size > 0
        assert share_of_hue(picture(page.locator("canvas")), colors["liver"]) > 0.001
