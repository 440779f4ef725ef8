"""How long torch's threads spin before they sleep: OpenMP itself is asked, in a process of its own."""

import os
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("asked", "seen"), [(None, "5000"), ("123456", "123456")])
def test_threads_of_torch_leave_the_cores_to_the_engine(asked: str | None, seen: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | ({} if asked is None else {"GOMP_SPINCOUNT": asked})
    said = subprocess.run(
        [sys.executable, "-c", "import service.inference.head"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    found = re.search(r"GOMP_SPINCOUNT = '([0-9]+)'", said)
    if found is None:
        pytest.skip("torch does not use GNU OpenMP here")
    assert found[1] == seen
