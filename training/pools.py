"""Processes that share the work over cases: fresh ones, of one thread each, that end with their parent."""

import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process

import torch


def process_pool(processes: int | None) -> ProcessPoolExecutor:
    """As many as `processes`; None: one per core.

    They are spawned: a process full of the threads of a training is no place to fork from. What they run must be
    importable.
    """
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_prepare)


def _prepare() -> None:
    torch.set_num_threads(1)  # threads of several processes would wait for each other
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: a pool's processes would else wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
