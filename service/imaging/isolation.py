"""GDCM in a process of its own.

It is the only free decoder of lossless JPEG, and damaged data make it abort or write beyond its memory; neither may
happen in the worker. The child starts with the first image that needs it, and its death is one more decoding error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Lock, Timer
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_CHILD = Path(__file__).with_name("gdcm_child.py")

# One image takes milliseconds; damaged ones may never end.
_TIMEOUT_S = 60.0


class IsolatedDecoder:
    """Decodes DICOM files with GDCM in a child process, one at a time, from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._stop()

    def decode(self, path: Path, syntax: str) -> NDArray[Any]:
        """The stored values of the file's image (rows, columns).

        Raises:
            ValueError: GDCM failed, or died of the data.
        """
        with self._lock:
            child = self._child or self._start()
            watchdog = Timer(_TIMEOUT_S, child.kill)
            watchdog.start()
            try:
                return _exchange(child, {"path": str(path), "syntax": syntax})
            except OSError as error:  # the pipe broke
                self._stop()
                raise ValueError("the decoder process died") from error
            finally:
                watchdog.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the script's folder stays out of the import path, where our module names could shadow others'.
        self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # GDCM writes about every damaged marker
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # one thread's buffers fit under the memory limit
        )
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _exchange(child: subprocess.Popen[bytes], request: dict[str, str]) -> NDArray[Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(request).encode() + b"\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise BrokenPipeError
    answer = json.loads(line)
    if not answer:
        raise ValueError("GDCM could not decode the image")
    dtype, shape = np.dtype(answer["dtype"]), tuple(answer["shape"])
    data = child.stdout.read(dtype.itemsize * int(np.prod(shape)))
    if len(data) != dtype.itemsize * int(np.prod(shape)):
        raise BrokenPipeError
    pixels: NDArray[Any] = np.frombuffer(data, dtype=dtype).reshape(shape)
    return pixels
