"""Draws docs/page.png: the page with what the default model found in a phantom, from a service started for it.

python -m docs.draw_page
"""

import tempfile
from pathlib import Path

from service.cli.local_key import read_local_key
from tests.support.browser import running_browser
from tests.support.phantom_zip import write_phantom_zip
from tests.support.service_process import running_service

PICTURE = Path(__file__).parent / "page.png"
SIZE = {"width": 1600, "height": 1120}
PATIENCE_MS = 600_000


def draw(out: Path, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 3.0)) -> None:
    """Write the picture."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_browser() as browser,
        running_service(Path(scratch) / "data") as (viscera, _),
    ):
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{viscera._http.base_url}/#key={read_local_key(Path(scratch) / 'data')}")
        page.locator("#model option").first.wait_for(state="attached")
        page.set_input_files("#files", write_phantom_zip(Path(scratch), spacing_mm))
        page.locator("#place", has_text="HU").wait_for()
        page.locator(".frame:not([aria-busy])").wait_for()
        page.get_by_role("button", name="All", exact=True).click()
        page.locator(".lesions button").first.click()
        page.mouse.wheel(0, -10_000)
        page.wait_for_timeout(3000)  # the last frame of a software renderer
        page.screenshot(path=out)


if __name__ == "__main__":
    draw(PICTURE)
