"""A whole service in processes of its own, on the default bundle, as `viscera serve` starts it."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.cli.local_key import read_local_key
from service.client import Viscera
from tests.support.jobs import wait_until
from tests.support.stored import stored_files

START_SECONDS = 90.0


@contextmanager
def running_service(data_dir: Path, **settings: str) -> Iterator[tuple[Viscera, subprocess.Popen[str]]]:
    """A client of the service and its process; both end with the block."""
    data_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **settings, "VISCERA_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with (data_dir / "service.log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        with Viscera(_address(process), api_key=read_local_key(data_dir)) as viscera:
            yield viscera, process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    assert ready, "serve printed nothing"
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found
    return found[0]


def settled_files(data_dir: Path) -> list[str]:
    """Files of results, once uploads and attempts are gone: a worker removes them after it has said how a job ended."""
    wait_until(lambda: all(name.startswith("results/") for name in stored_files(data_dir)), what="removal of uploads")
    return stored_files(data_dir)
