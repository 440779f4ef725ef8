"""`viscera open`: the page of a service at the result of a job, in a browser."""

import os
import sys
import webbrowser

from service.cli.console import OUT


def open_job(job_id: str, *, url: str, only_print: bool) -> int:
    """Open the page, or print its address where that is asked for or no browser can be opened; 0."""
    address = f"{url.rstrip('/')}/#{job_id}"
    if only_print or not _opened(address):
        OUT.print(address, soft_wrap=True, markup=False)
    return 0


def _opened(address: str) -> bool:
    # Without a display a browser of the terminal would be started, which does not run the page.
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys():
        return False
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False
