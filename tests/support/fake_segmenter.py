"""A segmenter without a model: what a job does stands in its model name, and each start leaves a line in a journal.

quick            writes one artifact
slow:<seconds>   the same after so many seconds, with progress every 10 ms
deaf:<seconds>   the same without progress, as in one long call of native code
poison           kills its process, as a crash in native code would
bad-input        raises a typed error
broken           raises what nobody expected
disk-full        as when the disk is full
"""

import errno
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from service.errors import TooFewSlices
from service.jobs.job import Notice
from service.progress import Progress, Stage
from service.request import SegmentationRequest
from service.settings import Settings

SPEC = f"{__name__}:open_segmenter"
NOTICE = {"code": "fake", "message": "Nothing was segmented."}


class FakeSegmenter:
    """Walks the stages as the real one does."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal

    def warm_up(self) -> None:
        """Nothing to load."""

    def segment(
        self, upload: Path, out_dir: Path, model: str, request: SegmentationRequest, progress: Progress
    ) -> Sequence[Notice]:
        with self.journal.open("a") as journal:
            journal.write(f"{out_dir.parent.parent.name} {os.getpid()}\n")
        assert upload.exists()
        with tempfile.NamedTemporaryFile() as scratch:
            scratch.write(b"decompressed slices")
            (out_dir / "half.nii.gz").write_bytes(b"written before the end")
            progress(Stage.READING, 1.0)
            self._act(model, progress)
        (out_dir / "masks").mkdir()
        (out_dir / "masks" / "liver.nii.gz").write_bytes(f"by {os.getpid()}".encode())
        return [NOTICE]

    def _act(self, model: str, progress: Progress) -> None:
        kind, _, seconds = model.partition(":")
        if kind == "slow":
            begin = time.monotonic()
            while (passed := time.monotonic() - begin) < float(seconds):
                progress(Stage.INFERENCE, passed / float(seconds))
                time.sleep(0.01)
        elif kind == "deaf":
            progress(Stage.INFERENCE, 0.5)
            time.sleep(float(seconds))
        elif kind == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "bad-input":
            raise TooFewSlices("The series has 4 slices; at least 10 are needed.")
        elif kind == "broken":
            raise ZeroDivisionError("patient Doe^Jane")
        elif kind == "disk-full":
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")


def journal_of(settings: Settings) -> Path:
    """Where the fake notes each start: `<job id> <pid>`."""
    return settings.data_dir / "journal.txt"


def open_segmenter(settings: Settings) -> FakeSegmenter:
    """Named by the setting `segmenter`."""
    return FakeSegmenter(journal_of(settings))
