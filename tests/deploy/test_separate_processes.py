"""The commands of the containers, each in a process of its own, as Compose starts them; without Docker."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.cli.local_key import read_local_key
from service.client import Viscera
from tests.support.api import write_model
from tests.support.fake_segmenter import SPEC
from tests.support.jobs import wait_until

ROOT = Path(__file__).parents[2]
VISCERA = ("-m", "service.cli")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command with the settings that all of them share; what is left of them is killed at the end."""
    write_model(tmp_path / "models")
    environment = {
        **os.environ,
        "VISCERA_DATA_DIR": str(tmp_path / "data"),
        "VISCERA_BUNDLES_DIR": f'["{tmp_path / "models"}"]',
        "VISCERA_SEGMENTER": SPEC,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    with ExitStack() as started:

        def start_one(*arguments: str) -> subprocess.Popen[str]:
            log = started.enter_context((tmp_path / f"{arguments[-1]}.log").open("a"))
            command = [sys.executable, *arguments]
            return started.enter_context(_killed_at_the_end(command, environment, log.fileno()))

        yield start_one


@contextmanager
def _killed_at_the_end(command: list[str], environment: dict[str, str], log: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_setup_api_sweeper_and_worker_are_processes_of_their_own(start: Start, tmp_path: Path) -> None:
    setup = start(*VISCERA, "keys", "bootstrap")
    printed, _ = setup.communicate(timeout=60)
    assert setup.returncode == 0
    key = read_local_key(tmp_path / "data")
    assert key == printed.strip()

    api = start(*VISCERA, "serve", "--port", "0", "--api-only")
    assert api.stdout is not None
    [address] = re.findall(r"http://127\.0\.0\.1:\d+", api.stdout.readline())
    study = tmp_path / "ct.nii"
    study.write_bytes(b"scan")
    with Viscera(address, api_key=key) as viscera:
        job_id = viscera.submit([study])["id"]
        assert viscera.job(job_id)["status"] == "queued"
        assert _children(api.pid) == []

        sweeper, worker = start("-m", "service.sweeper"), start(*VISCERA, "worker")
        assert viscera.wait(job_id)["status"] == "succeeded"
        wait_until(lambda: "sweeper.started" in (tmp_path / "service.sweeper.log").read_text(), what="the sweeper")

        for process in (worker, sweeper, api):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_setup_may_run_again(start: Start) -> None:
    assert start(*VISCERA, "keys", "bootstrap").wait(60) == 0
    again = start(*VISCERA, "keys", "bootstrap")
    printed, _ = again.communicate(timeout=60)
    assert (again.returncode, printed) == (0, "")
