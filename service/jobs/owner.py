"""Who holds a job: a name of a process that no other process ever has, and a test whether that process is gone.

On Linux the name is `<boot id>:<pid namespace>:<pid>:<start time>`: another process of the same host (and container)
can tell at once that the owner has died. Elsewhere only the lease tells.
"""

import os
import uuid
from pathlib import Path

_PROC = Path("/proc")


def current_owner() -> str:
    """The owner name of this process."""
    machine, start = _machine(), _start_ticks(os.getpid())
    if machine is None or start is None:
        return f"unknown:{uuid.uuid4().hex}:{os.getpid()}:0"
    return f"{machine}:{os.getpid()}:{start}"


def is_dead(owner: str) -> bool:
    """True only when it is certain that the process has ended: it was of this machine and is not there any more."""
    machine, pid, start = owner.rsplit(":", 2)
    if machine != _machine():
        return False
    return _start_ticks(int(pid)) != start


def is_here(owner: str) -> bool:
    """True only when it is certain that the process lives, on this machine and in this container."""
    machine, pid, start = owner.rsplit(":", 2)
    return machine == _machine() and _start_ticks(int(pid)) == start


def _machine() -> str | None:
    """Boot id and pid namespace: together they say which processes can be seen; None where there is no /proc."""
    try:
        boot_id = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (_PROC / "self/ns/pid").readlink().name
    except OSError:
        return None
    return f"{boot_id}:{namespace.removeprefix('pid:')}"


def _start_ticks(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None when there is none, or only its unreaped remains."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold anything, so count from behind it.
    fields = stat.rpartition(")")[2].split()
    state, start = fields[0], fields[19]
    return None if state in ("Z", "X") else start
