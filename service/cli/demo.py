"""`viscera demo`: a whole service for one study: started, used over HTTP like any other, and stopped."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service.cli.console import OUT
from service.cli.local_key import read_local_key
from service.cli.submit import submit
from service.errors import EngineUnavailable
from service.request import SegmentationRequest

_ADDRESS = re.compile(r"http://[0-9.]+:\d+")
_START_SECONDS = 90.0
_STOP_SECONDS = 20.0


def demo(study: Path, request: SegmentationRequest, *, out: Path) -> int:
    """Segment `study` through a service of its own and fetch the results into `out`; the exit status of `submit`.

    Raises:
        EngineUnavailable: the service did not become ready; its log tells why.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _service(out / "service") as url:
        OUT.print(f"Service ready at {url}", soft_wrap=True)
        key = read_local_key(out / "service")
        status = submit([study], request, url=url, api_key=key, wait=True, out=out, model=None)
    if status == 0:
        OUT.print(f"Look at {out / 'overview.png'}", soft_wrap=True)
    return status


@contextmanager
def _service(data_dir: Path) -> Iterator[str]:
    """The address of a ready service that lives as long as the block."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "service.log"
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--data-dir", str(data_dir)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with log.open("wb") as sink:
        # This interpreter and our own module, with arguments that no shell reads.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, env=environment)  # noqa: S603  # see above
        try:
            yield _when_ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _when_ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address the service printed, once its worker has passed the bundle's self-test."""
    deadline = time.monotonic() + _START_SECONDS
    url = _printed_address(process)
    while url and time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == httpx.codes.OK:
                return url
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise EngineUnavailable(
        f"The service did not become ready; its log is {log}. `viscera doctor` says what is missing."
    )


def _printed_address(process: subprocess.Popen[bytes]) -> str | None:
    assert process.stdout is not None
    for line in process.stdout:
        found = _ADDRESS.search(line.decode(errors="replace"))
        if found:
            # The pipe is read on, or a chatty service would stand still when it is full.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return found.group()
    return None
