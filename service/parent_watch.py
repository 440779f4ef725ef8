"""A process that ends with the one that started it, however that one ends."""

import os
import signal
import threading
from contextlib import suppress

from billiard.util import set_pdeathsig  # type: ignore[import-untyped]  # billiard has no types

_LOOK_SECONDS = 0.5


def die_with_process(pid: int) -> None:
    """Kill this process soon after its parent `pid` has died: nobody would restart it or hear of it.

    A thread looks, because the kernel's own way also fires when only the thread that forked ends: with it, which Celery
    asks for, a shutdown would kill the job of a child that had replaced a dead one.
    """
    with suppress(OSError):  # only Linux has it
        set_pdeathsig(0)

    def watch() -> None:
        while os.getppid() == pid:
            never.wait(_LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    never = threading.Event()
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
