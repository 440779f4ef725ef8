"""Arrays that wait to be read again: in memory up to a limit, from there on in a file without a name.

What a trained model leaves of its logits stays in memory. A model that is unsure of everything leaves a multiple of the
scan, which would otherwise set how much memory a job takes.
"""

import os
import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from math import prod
from mmap import mmap
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

IN_MEMORY_BYTES = 256 * 1024**2
"""How much of what waits stays in memory."""


class Spool:
    """Takes arrays and gives for each a function that reads it."""

    def __init__(self, folder: Path | None = None, in_memory_bytes: int = IN_MEMORY_BYTES) -> None:
        """The file lies in `folder`, by default that for temporary files, and ends with the last reader."""
        self._folder = folder
        self._free = in_memory_bytes
        self._file: IO[bytes] | None = None

    def put(self, values: Float32) -> Callable[[], Float32]:
        """Keep a copy of the values. Raises OSError when the disk, or memory, is full."""
        if not values.size:
            shape = values.shape
            return lambda: np.empty(shape, np.float32)
        if values.nbytes <= self._free:
            self._free -= values.nbytes
            memory = mmap(-1, values.nbytes)  # pages of its own, which go back to the system with the last reader
            _in_memory(memory, values.shape)[:] = values
            return partial(_in_memory, memory, values.shape)
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  # closed with the spool
            weakref.finalize(self, self._file.close)
        start = self._file.seek(0, os.SEEK_END)
        values.tofile(self._file)
        return partial(self._read, self._file, start, values.shape)

    def _read(self, file: IO[bytes], start: int, shape: tuple[int, ...]) -> Float32:
        file.seek(start)
        return np.fromfile(file, np.float32, count=prod(shape)).reshape(shape)


def _in_memory(memory: mmap, shape: tuple[int, ...]) -> Float32:
    return np.frombuffer(memory, np.float32).reshape(shape)
