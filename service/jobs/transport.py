"""The embedded queue: a folder in which each file is one message. A kombu transport for a machine without a broker.

    <folder>/<priority>-<nanoseconds>_<uuid>.<queue>.msg     waits; the name is its place in the line
    <folder>/.<uuid>.tmp                                     being written
    <folder>/taken/<same name>                               being read by the worker that won the rename

kombu's own filesystem transport opens the final name first and writes afterwards, so a worker that looks in between
takes an empty message and dies; and it keeps its bindings in files with the same race. Here a message appears by rename
and is taken by rename, and bindings stay in memory because only direct queues exist.

A message is not truth but a hint to look at the job table: one that dies with its worker is sent again by the sweeper.
"""

import json
import os
import uuid
from pathlib import Path
from queue import Empty
from time import time_ns
from typing import Any

from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, virtual

TRANSPORT_NAME = "atomicfs"
_LOWEST_PRIORITY = 9
_LONGEST_WAIT_SECONDS = 0.2


class Channel(virtual.Channel):
    """One connection's view of the folder."""

    supports_fanout = False

    def _put(self, queue: str, message: dict[str, Any], **_: object) -> None:
        priority = min(max(int(message["properties"].get("priority") or 0), 0), _LOWEST_PRIORITY)
        name = f"{priority}-{time_ns():020d}_{uuid.uuid4().hex}"
        unfinished = self._folder / f".{uuid.uuid4().hex}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with unfinished.open("xb") as file:
                    file.write(json.dumps(message).encode())
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(self._folder / f"{name}.{queue}.msg")
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise OperationalError(f"The queue folder cannot be written: {error.strerror}") from error

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ANN401 - kombu's message
        taken_folder = self._folder / "taken"
        for path in self._waiting(queue):
            taken = taken_folder / path.name
            try:
                taken_folder.mkdir(exist_ok=True, mode=0o700)
                path.rename(taken)
                message = taken.read_bytes()
                taken.unlink()
            except OSError:
                continue  # another worker was faster, or the folder is away: the sweeper sends it again
            return json.loads(message)
        raise Empty

    def _size(self, queue: str) -> int:
        return len(self._waiting(queue))

    def _purge(self, queue: str) -> int:
        waiting = self._waiting(queue)
        for path in waiting:
            path.unlink(missing_ok=True)
        return len(waiting)

    def _waiting(self, queue: str) -> list[Path]:
        """The queue's messages, the next one first."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - names alone, and often
        except OSError:
            return []
        return [self._folder / name for name in sorted(names) if name.partition(".")[2] == f"{queue}.msg"]

    @property
    def _folder(self) -> Path:
        return Path(self.connection.client.transport_options["folder"])


class Transport(virtual.Transport):
    """`atomicfs://`, with the transport options `folder` and `polling_interval` (seconds)."""

    Channel = Channel
    implements = virtual.Transport.implements.extend(asynchronous=False, exchange_type=frozenset({"direct"}))
    driver_type = TRANSPORT_NAME
    driver_name = TRANSPORT_NAME
    # Shared by the connections of a process, as the bindings of one broker are.
    global_state = virtual.BrokerState()  # type: ignore[no-untyped-call]  # kombu is typed in part

    def __init__(self, client: Any, **kwargs: Any) -> None:  # noqa: ANN401 - kombu's connection
        super().__init__(client, **kwargs)  # type: ignore[no-untyped-call]  # kombu is typed in part
        self.state = self.global_state

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> None:  # noqa: ANN401 - kombu's
        """Deliver the next message; raises TimeoutError when none comes.

        Celery's loop waits two seconds at a time and sees a shutdown only in between, so it gets its answer sooner.
        """
        wait = None if timeout is None else min(timeout, _LONGEST_WAIT_SECONDS)
        super().drain_events(connection, wait)  # type: ignore[no-untyped-call]  # kombu is typed in part

    def driver_version(self) -> str:
        """Version of the message format."""
        return "1"


def register() -> None:
    """Make `atomicfs://` known to kombu in this process."""
    TRANSPORT_ALIASES[TRANSPORT_NAME] = f"{__name__}:{Transport.__name__}"
