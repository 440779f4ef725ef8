"""Seconds from a click on a job to its result on the screen, and what the page's first load weighs.

    python -m benchmarks.page STUDY [--times 5] [--pictures FOLDER]

A whole service is started with the default bundle, and segments the study (.nii.gz, .zip or a folder of DICOM). Then
the page is opened in a headless Chromium, whose software renderer draws, as often as asked for: each time without a
cache, and with one click on the job in the list. The result is there when volume, labels and findings are drawn. The
pictures are of 360, 1280 and 2560 pixels of width, light and dark.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from service.cli.local_key import read_local_key
from tests.support.browser import running_browser
from tests.support.service_process import running_service

PATIENCE_MS = 120_000
WIDTHS = (360, 1280, 2560)


def main() -> None:
    """Two lines, and the pictures."""
    parser = argparse.ArgumentParser(description="How fast a result is seen.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_browser() as browser,
        running_service(Path(scratch) / "data") as (viscera, _),
    ):
        study = chosen.study
        if study.is_dir():
            study = Path(shutil.make_archive(str(Path(scratch) / "study"), "zip", study))
        job = viscera.wait(str(viscera.submit([study])["id"]))
        assert job["status"] == "succeeded", job
        address = f"{viscera.url}/#key={read_local_key(Path(scratch) / 'data')}"
        found = [show(browser, address, str(job["id"])) for _ in range(chosen.times)]
        seconds = np.array([taken for taken, _ in found])
        print(f"first load {found[0][1] / 1e6:.2f} MB as sent")
        print(f"click to result: median {np.median(seconds):.1f} s, slowest {seconds.max():.1f} s of {len(seconds)}")
        if chosen.pictures is not None:
            take_pictures(browser, address, str(job["id"]), chosen.pictures)


def show(browser: Any, address: str, job_id: str) -> tuple[float, int]:  # noqa: ANN401 - Playwright is not always there
    """Seconds from the click to the result, and the bytes of the page before the click."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        sizes: list[int] = []
        page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
        page.goto(address)
        entry = page.locator(f'[data-job="{job_id}"]').first
        entry.wait_for()
        page.wait_for_load_state("networkidle")
        weight = sum(sizes)
        began = time.perf_counter()
        entry.click()
        page.locator(".frame:not([aria-busy]) canvas").wait_for()
        page.locator("#place", has_text="HU").wait_for()
        return time.perf_counter() - began, weight


def take_pictures(browser: Any, address: str, job_id: str, folder: Path) -> None:  # noqa: ANN401 - as above
    """`page-<width>-<scheme>.png` for each width and color scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            size = {"width": width, "height": max(900, width * 9 // 16)}
            with browser.new_context(viewport=size, color_scheme=scheme) as context:
                page = context.new_page()
                page.set_default_timeout(PATIENCE_MS)
                page.goto(address)
                page.locator(f'[data-job="{job_id}"]').first.click()
                page.locator(".frame:not([aria-busy]) canvas").wait_for()
                page.locator("#place", has_text="HU").wait_for()
                page.wait_for_timeout(3000)  # the last frame of a software renderer
                page.screenshot(path=folder / f"page-{width}-{scheme}.png", full_page=width == WIDTHS[0])


if __name__ == "__main__":
    main()
