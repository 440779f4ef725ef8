"""An upload of 2 GB goes through the service without staying in its memory."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.cli.local_key import read_local_key
from tests.support.fake_segmenter import SPEC
from tests.support.service_process import running_service

CHUNK = bytes(1_000_000)
BYTES = 2_000_000_000


def most_resident_mb(pid: int) -> float:
    """The most memory that the process ever held, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_gigabytes_take_less_than_100_megabytes_of_memory(tmp_path: Path):
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.nii"\r\n\r\n'
    tail = b"\r\n--b--\r\n"

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(BYTES // len(CHUNK)):
            yield CHUNK
        yield tail

    with running_service(tmp_path, VISCERA_SEGMENTER=SPEC) as (viscera, process):
        headers = {
            "Authorization": f"Bearer {read_local_key(tmp_path)}",
            "Content-Type": "multipart/form-data; boundary=b",
            "Content-Length": str(len(head) + BYTES + len(tail)),
        }
        viscera.models()  # what every first request loads is not the upload's
        before = most_resident_mb(process.pid)
        answer = httpx.post(f"{viscera.url}/v1/jobs", content=body(), headers=headers, timeout=600)
        after = most_resident_mb(process.pid)

    assert answer.status_code == 202, answer.text
    assert answer.json()["upload_bytes"] == BYTES
    assert after - before < 100
