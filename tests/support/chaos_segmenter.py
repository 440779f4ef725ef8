"""A segmenter for chaos: works as long as the upload says and writes a mask that shows whose it is and if it is whole.

An upload is a line such as `seconds=0.4 number=17`.
"""

import json
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from service.jobs.job import Notice
from service.progress import Progress, Stage
from service.request import SegmentationRequest
from service.settings import Settings

SPEC = f"{__name__}:open_segmenter"
MASK = "masks/liver.nii.gz"
BLOCKS = 2048  # of 32 bytes


def upload_of(number: int, seconds: float) -> bytes:
    return f"seconds={seconds} number={number}".encode()


def mask_of(upload: bytes) -> bytes:
    """What a whole mask of this upload is."""
    return sha256(upload).digest() * BLOCKS


class ChaosSegmenter:
    def warm_up(self) -> None:
        """Nothing to load."""

    def segment(
        self, upload: Path, out_dir: Path, model: str, request: SegmentationRequest, progress: Progress
    ) -> Sequence[Notice]:
        content = upload.read_bytes()
        seconds = float(content.split()[0].removeprefix(b"seconds="))
        begin = time.monotonic()
        (out_dir / "masks").mkdir()
        with (out_dir / MASK).open("wb") as file:
            block = sha256(content).digest()
            for written in range(BLOCKS):
                file.write(block)
                progress(Stage.INFERENCE, written / BLOCKS)
                time.sleep(max(0.0, begin + seconds * written / BLOCKS - time.monotonic()))
        mask = mask_of(content)
        entry = {"name": MASK, "media_type": "application/gzip", "bytes": len(mask), "sha256": sha256(mask).hexdigest()}
        (out_dir / "artifacts.json").write_text(json.dumps([entry]))
        return []


def open_segmenter(settings: Settings) -> ChaosSegmenter:
    """Named by the setting `segmenter`."""
    return ChaosSegmenter()
