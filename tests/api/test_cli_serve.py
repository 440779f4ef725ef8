"""`viscera serve` as a process: one command, a port, a worker, and an orderly end."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.cli.local_key import read_local_key
from service.cli.serve import _listen
from service.client import UnreachableError, Viscera
from service.jobs.owner import is_dead
from service.jobs.store import JobStore
from service.settings import Settings
from tests.support.api import write_model
from tests.support.fake_segmenter import SPEC

ROOT = Path(__file__).parents[2]


def test_a_client_that_comes_early_waits_instead_of_being_turned_away() -> None:
    """The address is printed before the API answers: from then on a connection must not be refused."""
    with _listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(OSError, match="in use"):
            _listen("127.0.0.1", port)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], Viscera]]:
    """A service with a stand-in for the model, on a free port, with its client."""
    if not (folder / "models").exists():
        write_model(folder / "models")
    environment = {
        **os.environ,
        "VISCERA_DATA_DIR": str(folder / "data"),
        "VISCERA_BUNDLES_DIR": f'["{folder / "models"}"]',
        "VISCERA_SEGMENTER": SPEC,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", *options]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
    try:
        with Viscera(_address(process), api_key=read_local_key(folder / "data")) as viscera:
            yield process, viscera
    finally:
        process.kill()
        process.communicate()


def _address(process: subprocess.Popen[str], seconds: float = 30.0) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    assert ready, "serve printed nothing"
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    return found[0]


def _submit(viscera: Viscera, study: Path) -> str:
    deadline = time.monotonic() + 20
    while True:
        try:
            return str(viscera.submit([study])["id"])
        except UnreachableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "ct.nii"
    path.write_bytes(b"scan")
    return path


def test_one_command_serves_works_and_ends_in_good_order(tmp_path: Path, study: Path):
    with serving(tmp_path) as (process, viscera):
        job_id = _submit(viscera, study)
        assert viscera.wait(job_id)["status"] == "succeeded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0

    with_store = JobStore(Settings(data_dir=tmp_path / "data").database_url)
    assert all(is_dead(owner) for owner in with_store.owners())
    with_store.close()


def test_ctrl_c_ends_it_too_and_jobs_survive_a_restart(tmp_path: Path, study: Path):
    with serving(tmp_path) as (process, viscera):
        job_id = _submit(viscera, study)
        process.send_signal(signal.SIGINT)
        assert process.wait(25) == 0
    with serving(tmp_path) as (_, viscera):
        assert viscera.wait(job_id)["status"] == "succeeded"


def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", str(taken.getsockname()[1])]
        environment = {**os.environ, "VISCERA_DATA_DIR": str(tmp_path / "data")}
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
        )

    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "--port" in run.stderr


def test_a_setting_that_makes_no_sense_is_one_line_and_status_2(tmp_path: Path):
    command = [sys.executable, "-m", "service.cli", "serve"]
    environment = {**os.environ, "VISCERA_DATA_DIR": str(tmp_path), "VISCERA_PORT": "many"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)

    assert run.returncode == 2
    assert "port" in run.stderr
    assert "Traceback" not in run.stderr
