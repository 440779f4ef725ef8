"""GDCM in processes of its own.

It is the only free decoder of lossless JPEG, and damaged data make it abort or write beyond its memory; neither may
happen in the worker. A child starts with the first image that needs it, and its death is one more decoding error.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from queue import LifoQueue
from threading import Timer
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_CHILD = Path(__file__).with_name("gdcm_child.py")

# One image takes milliseconds; damaged ones may never end.
_TIMEOUT_S = 60.0


class IsolatedDecoder:
    """Decodes DICOM images with GDCM in as many child processes as threads ask at once, up to `children`."""

    def __init__(self, children: int = 1) -> None:
        self._children = [_Child() for _ in range(children)]
        # The latest used first, so that one thread alone starts one child.
        self._idle: LifoQueue[_Child] = LifoQueue()
        for child in self._children:
            self._idle.put(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for child in self._children:
            child.stop()

    def decode(self, path: Path, syntax: str, frame: int = 0) -> NDArray[Any]:
        """The stored values of one image of the file (rows, columns); frames count from 0.

        Raises:
            ValueError: GDCM failed, or died of the data.
        """
        child = self._idle.get()
        try:
            return child.decode({"path": str(path), "syntax": syntax, "frame": frame})
        finally:
            self._idle.put(child)


class _Child:
    """One process, started when it is first asked and again after it died; used by one thread at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def decode(self, request: dict[str, str | int]) -> NDArray[Any]:
        process = self.process or self._start()
        watchdog = Timer(_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            return _exchange(process, request)
        except OSError as error:  # the pipe broke
            self.stop()
            raise ValueError("the decoder process died") from error
        finally:
            watchdog.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the script's folder stays out of the import path, where our module names could shadow others'.
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and script
            [sys.executable, "-P", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # GDCM writes about every damaged marker
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # one thread's buffers fit under the memory limit
        )
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _exchange(child: subprocess.Popen[bytes], request: dict[str, str | int]) -> NDArray[Any]:
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
