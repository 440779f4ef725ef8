"""Pools of processes for cases."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from training.pools import process_pool

_PARENT = """
import os, time
from training.pools import process_pool
if __name__ == "__main__":
    pool = process_pool(2)
    jobs = [pool.submit(time.sleep, 1.0) for _ in range(2)]
    print(*pool._processes, flush=True)
    [job.result() for job in jobs]
    print("waiting", flush=True)
    time.sleep(600)
"""


def test_each_process_has_one_thread() -> None:
    with process_pool(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        assert pool.submit(os.getpid).result() != os.getpid()


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2
        assert parent.stdout.readline() == "waiting\n"
        assert all(map(_runs, children))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 30.0
    while any(map(_runs, children)):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
