"""The page in a headless Chromium, over the API of this process; the test itself is the worker."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.api.pages import WEB_FOLDER
from service.jobs.store import JobStore
from service.storage import LocalStorage

CHROMIUM = shutil.which("chromium")
# A sandbox needs a user other than root; the software renderer gives the same pixels everywhere.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
OWNER = "test-worker"


@contextmanager
def running_browser() -> Iterator[Any]:
    """A Playwright browser; skips where one cannot be had."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    if not (WEB_FOLDER / "built" / "index.html").is_file():
        pytest.skip("the page is not built: make web")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class HandWorker:
    """Does what a worker does with its jobs, step by step as a test says."""

    store: JobStore
    storage: LocalStorage

    def start(self, job_id: str) -> None:
        """Take the job."""
        assert self.store.claim(job_id, OWNER, 60.0)

    def progress(self, job_id: str, stage: str, percent: float) -> bool:
        """Report progress; True when the job shall stop."""
        renewal = self.store.renew(job_id, OWNER, stage=stage, percent=percent, lease_seconds=60.0)
        return bool(renewal.cancel_requested)

    def stop(self, job_id: str) -> None:
        """Obey a request to cancel."""
        assert self.store.finish_cancel(job_id, OWNER)

    def finish(self, job_id: str, result: Path) -> None:
        """Publish the files of `result` and end the job."""
        attempt = self.store.get(job_id).attempts
        shutil.copytree(result, self.storage.begin_result(job_id, attempt), dirs_exist_ok=True)
        self.storage.publish_result(job_id, attempt)
        assert self.store.succeed(job_id, OWNER)


def picture(locator: Any) -> NDArray[np.uint8]:
    """What an element looks like: (rows, columns, 3)."""
    return np.asarray(Image.open(BytesIO(locator.screenshot())).convert("RGB"))


def share_of_hue(image: NDArray[np.uint8], color: tuple[int, int, int]) -> float:
    """Part of the pixels whose color is the given one, laid over any gray."""
    wanted = _chroma(np.array(color, float))
    found = _chroma(image.astype(float))
    strength = np.linalg.norm(found, axis=-1)
    direction = found @ wanted / np.maximum(strength * np.linalg.norm(wanted), 1e-9)
    return float(((strength > 20.0) & (direction > 0.995)).mean())


def _chroma(color: NDArray[np.float64]) -> NDArray[np.float64]:
    """A color without its gray part."""
    return color - color.mean(axis=-1, keepdims=True)
