"""What the API itself costs, on this machine: from a study's first byte to the start of its task, and polling.

    python -m benchmarks.api [--posts 40] [--megabytes 50] [--polls-per-second 500] [--seconds 20] [--redis URL]

A whole service is started as `viscera serve` does it, with a stand-in for the model, so that a job costs nothing.
Client and service share the machine. Polls are sent at a fixed rate, however long the answers take (an open loop), over
connections that stay open; each carries a key, and asks for a job that has ended.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from service.cli.local_key import read_local_key
from service.client import Viscera
from tests.support.fake_segmenter import SPEC
from tests.support.service_process import running_service

CONNECTIONS = 50


def main() -> None:
    """Two tables: seconds from POST to task start, and milliseconds of a poll."""
    parser = argparse.ArgumentParser(description="What the API costs.")
    parser.add_argument("--posts", type=int, default=40)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--polls-per-second", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--redis", metavar="URL", help="broker instead of the embedded queue")
    chosen = parser.parse_args()
    broker = {"VISCERA_BROKER_URL": chosen.redis} if chosen.redis else {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with running_service(folder / "data", VISCERA_SEGMENTER=SPEC, **broker) as (viscera, process):
            key = read_local_key(folder / "data")
            assert key is not None
            starts = start_seconds(viscera, folder, chosen.posts, chosen.megabytes)
            name = "Redis" if chosen.redis else "embedded queue"
            _report(f"POST of {chosen.megabytes} MB to task start, {name}, ms", starts)
            job_id = viscera.jobs(limit=1)["jobs"][0]["id"]
            before = _cpu_seconds(process.pid)
            polls = asyncio.run(poll_seconds(viscera.url, key, job_id, chosen.polls_per_second, chosen.seconds))
            _report(f"poll at {chosen.polls_per_second}/s, ms", polls)
            spent = (_cpu_seconds(process.pid) - before) / len(polls)
            print(f"CPU time of the server for each poll: {spent * 1000:.2f} ms")


def start_seconds(viscera: Viscera, folder: Path, posts: int, megabytes: int) -> list[float]:
    """Seconds from the first byte of each POST to the moment a worker started the job; the first one warms up."""
    study = folder / "ct.nii"
    random = np.random.default_rng(7)
    found = []
    for _ in range(posts + 1):
        study.write_bytes(random.bytes(megabytes * 1_000_000))
        began = time.time()
        job = viscera.wait(viscera.submit([study])["id"])
        assert job["started_at"] is not None
        found.append(datetime.fromisoformat(job["started_at"]).timestamp() - began)
    return found[1:]


async def poll_seconds(url: str, key: str, job_id: str, per_second: int, seconds: float) -> list[float]:
    """Seconds from the moment each poll was due until its answer had come."""
    address = urlsplit(url)
    request = (
        f"GET /v1/jobs/{job_id} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    )
    began = time.perf_counter() + 0.5
    dues = [began + number / per_second for number in range(int(per_second * seconds))]
    shares = [dues[first::CONNECTIONS] for first in range(CONNECTIONS)]
    polled = await asyncio.gather(
        *(_poll(str(address.hostname), int(address.port or 80), request, share) for share in shares)
    )
    return [taken for share in polled for taken in share]


async def _poll(host: str, port: int, request: bytes, dues: Sequence[float]) -> list[float]:
    reader, writer = await asyncio.open_connection(host, port)
    found = []
    for due in dues:
        await asyncio.sleep(due - time.perf_counter())
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        found.append(time.perf_counter() - due)
    writer.close()
    return found


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, whatever else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _report(name: str, seconds: Sequence[float]) -> None:
    p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
    print(
        f"{name:50} n {len(seconds):6}  p50 {p50:7.1f}  p95 {p95:7.1f}  p99 {p99:7.1f}  max {max(seconds) * 1000:7.1f}"
    )


if __name__ == "__main__":
    main()
