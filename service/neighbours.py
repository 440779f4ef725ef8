"""The jobs beside this one in the same worker: one of them at a time has the network, and no memory is promised twice.

A worker runs some jobs at once, each in a process of its own, so that the processor or the GPU has work while studies
are read and results written. What they have to agree upon lies in a file without a name that they inherit. Its locks
are the kernel's: a process that dies gives them back.
"""

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from service.progress import Progress, Stage

_LOOK_SECONDS = 0.02
_TURN, _LOADING, _ACCOUNTS = range(3)  # bytes of the file that are locked
_RECORDS_AT = 64
_RECORD = struct.Struct("<qqq")  # process, bytes promised to it, bytes that it had then
_PROC = Path("/proc")


class Accounts(Protocol):
    """What is promised of the memory; nobody else is promised any while one looks."""

    @property
    def owed_bytes(self) -> int:
        """Memory that was promised to neighbours and that they have not taken yet."""

    @property
    def alone(self) -> bool:
        """No neighbour has the promise of any memory."""

    def promise(self, amount: int) -> None:
        """The job of this process may take so many bytes from now on."""


class Neighbours(Protocol):
    """The other jobs of the worker, as one of them sees them."""

    def network(self, progress: Progress) -> AbstractContextManager[None]:
        """Have the network to oneself in the block; `progress` hears of the waiting and may raise to end it."""

    def loading(self) -> AbstractContextManager[None]:
        """Open a model in the block; one process at a time, so that the first is ready soon."""

    def accounts(self) -> AbstractContextManager[Accounts]:
        """The accounts of the worker's memory, for a moment."""

    def settle(self) -> None:
        """The job has ended: nothing is promised to it any more."""


class NoNeighbours:
    """Of a job that is alone in its process tree."""

    owed_bytes = 0
    alone = True

    def promise(self, amount: int) -> None:
        """Nobody else counts on it."""

    def network(self, progress: Progress) -> AbstractContextManager[None]:
        """At once."""
        return nullcontext()

    def loading(self) -> AbstractContextManager[None]:
        """At once."""
        return nullcontext()

    def accounts(self) -> AbstractContextManager[Accounts]:
        """Empty."""
        return nullcontext(self)

    def settle(self) -> None:
        """Nothing was promised."""


NO_NEIGHBOURS = NoNeighbours()


class WorkerNeighbours:
    """Of the processes of one worker: made in their parent, inherited, used by one job at a time in each.

    Args:
        processes: how many of them live at the same time.
    """

    def __init__(self, processes: int) -> None:
        self._records = 2 * processes  # one that is killed lingers while the next one starts
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the processes live
        self._file.truncate(_RECORDS_AT + self._records * _RECORD.size)
        self._counted_on = False

    @contextmanager
    def network(self, progress: Progress) -> Iterator[None]:
        """Wait for the network, then have it; see Neighbours."""
        while not self._try(_TURN):
            progress(Stage.WAITING, 0.0)
            time.sleep(_LOOK_SECONDS)
        try:
            yield
        finally:
            self._give_back(_TURN)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait until no neighbour opens a model; see Neighbours."""
        with self._held(_LOADING):
            yield

    @contextmanager
    def accounts(self) -> Iterator[Accounts]:
        """The accounts, held for the block; see Neighbours."""
        with self._held(_ACCOUNTS):
            self._counted_on = True
            yield _WorkerAccounts(self._file.fileno(), self._records)

    def settle(self) -> None:
        """Take the promise back; see Neighbours."""
        if self._counted_on:
            with self.accounts() as accounts:
                accounts.promise(0)
            self._counted_on = False

    def close(self) -> None:
        """Nobody is going to use it any more."""
        self._file.close()

    @contextmanager
    def _held(self, byte: int) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, byte)
        try:
            yield
        finally:
            self._give_back(byte)

    def _try(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def _give_back(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


class _WorkerAccounts:
    """One record for each process; that of one that has died is the next one's. Only where `/proc` tells who lives."""

    def __init__(self, file: int, records: int) -> None:
        self._file = file
        self._records = list(_RECORD.iter_unpack(os.pread(file, records * _RECORD.size, _RECORDS_AT)))

    @property
    def owed_bytes(self) -> int:
        return sum(
            max(0, promised - (resident - before))
            for pid, promised, before in self._neighbours()
            if (resident := _resident_bytes(pid)) is not None
        )

    @property
    def alone(self) -> bool:
        return not any(promised and _resident_bytes(pid) is not None for pid, promised, _ in self._neighbours())

    def promise(self, amount: int) -> None:
        own = os.getpid()
        slots = [slot for slot, (pid, *_) in enumerate(self._records) if pid == own]
        slots += [slot for slot, (pid, *_) in enumerate(self._records) if not pid or _resident_bytes(pid) is None]
        slot = slots[0]
        self._records[slot] = (own, amount, _resident_bytes(own) or 0)
        os.pwrite(self._file, _RECORD.pack(*self._records[slot]), _RECORDS_AT + slot * _RECORD.size)

    def _neighbours(self) -> list[tuple[int, ...]]:
        return [record for record in self._records if record[0] not in (0, os.getpid())]


def _resident_bytes(pid: int) -> int | None:
    """Memory that a process has, mapped files apart; None when it has died or the system does not tell."""
    try:
        size, resident, shared, *_ = (_PROC / str(pid) / "statm").read_text().split()
    except OSError:
        return None
    if size == "0":  # its unreaped remains
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


_shared: Neighbours = NO_NEIGHBOURS


def share(processes: int) -> None:
    """To be called in a worker's parent process, before it has any children."""
    global _shared
    _shared = WorkerNeighbours(processes) if processes > 1 else NO_NEIGHBOURS


def neighbours() -> Neighbours:
    """Those of this process."""
    return _shared
