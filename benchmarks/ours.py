"""One scan by Viscera, in a process of its own, the stages measured: the other half of `benchmarks/pipeline.py`.

python benchmarks/ours.py CT.nii.gz --out FOLDER [--bundle BUNDLE] [--overlap 0.5] [--postprocessing reference]
    [--precision fp32]
"""

import argparse
import json
import resource
import time
from contextlib import suppress
from pathlib import Path

from service.opening import open_with_pipeline
from service.progress import Stage
from service.request import PostProcessing, SegmentationRequest


class Watch:
    """Seconds of each stage, and the most memory (RSS, MiB) that the process had in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mib: dict[str, float] = {"opening": _peak_mib_since_last()}
        self._stage, self._since = Stage.READING, time.perf_counter()

    def __call__(self, stage: Stage, _fraction: float) -> None:
        """A report of progress."""
        now, last = time.perf_counter(), self._stage.value
        self.seconds[last] = self.seconds.get(last, 0.0) + now - self._since
        self.peak_mib[last] = max(self.peak_mib.get(last, 0.0), _peak_mib_since_last())
        self._stage, self._since = stage, now


def _peak_mib_since_last() -> float:
    """The peak RSS since the last call, where the kernel lets it be reset; of the whole process elsewhere."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak_kib = int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc
        return peak_kib / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Segments one scan; prints the seconds and the peak RSS of each stage as JSON."""
    parser = argparse.ArgumentParser(description="One scan by Viscera.")
    parser.add_argument("scan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--postprocessing", type=PostProcessing, default=PostProcessing.REFERENCE)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, segment_study = open_with_pipeline(arguments.bundle, engine="auto", precision=arguments.precision)
    watch = Watch()
    request = SegmentationRequest(overlap=arguments.overlap, postprocessing=arguments.postprocessing)
    segment_study(arguments.scan, arguments.out, model, request, watch)
    watch(Stage.WRITING, 1.0)
    peaks = {stage: round(peak) for stage, peak in watch.peak_mib.items()}
    print(json.dumps({"seconds": watch.seconds, "peak_mib": max(peaks.values()), "peak_mib_by_stage": peaks}))


if __name__ == "__main__":
    main()
