"""Examples of the documents in a shell: bash with curl and jq, as their reader has them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT

TOOLS = ("bash", "curl", "jq", "zip", "uuidgen")
INSTALL = "the examples need curl, jq, zip and uuidgen; install them: apt-get install curl jq zip uuid-runtime"
SECONDS = 240
CURL = 'fail-with-body\nno-progress-meter\nmax-time = 120\nnoproxy = "*"\n'
VISCERA = f'#!/bin/sh\nexec "{sys.executable}" -m service.cli "$@"\n'


def run_script(script: str, folder: Path, **environment: str) -> str:
    """What the script prints; a command that fails and an answer that is an error fail the test.

    Args:
        script: aliases hold in it, as in a shell that a person types into.
        folder: it runs there; `viscera` is the command of this repository.
    """
    if not all(map(shutil.which, TOOLS)):
        pytest.skip(INSTALL)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / ".curlrc").write_text(CURL)
    (home / "viscera").write_text(VISCERA)
    (home / "viscera").chmod(0o755)
    (home / "script.sh").write_text(script)
    command = ["bash", "-O", "expand_aliases", "-euo", "pipefail", str(home / "script.sh")]
    given = {
        **os.environ,
        **environment,
        "HOME": str(home),
        "CURL_HOME": str(home),
        "PATH": f"{home}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout
