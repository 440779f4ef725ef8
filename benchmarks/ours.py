"""One scan by Viscera, in a process of its own, the stages timed: the other half of `benchmarks/pipeline.py`.

python benchmarks/ours.py CT.nii.gz --out FOLDER [--bundle BUNDLE] [--overlap 0.5] [--postprocessing reference]
"""

import argparse
import json
import resource
import time
from pathlib import Path

from service.inference.model import load_bundle
from service.pipeline import segment_study
from service.progress import Stage
from service.request import PostProcessing, SegmentationRequest


def main() -> None:
    """Segments one scan; prints the seconds of each stage and the peak RSS as JSON."""
    parser = argparse.ArgumentParser(description="One scan by Viscera.")
    parser.add_argument("scan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--postprocessing", type=PostProcessing, default=PostProcessing.REFERENCE)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = load_bundle(arguments.bundle)
    seconds: dict[str, float] = {}
    last, since = Stage.READING, time.perf_counter()

    def watch(stage: Stage, _fraction: float) -> None:
        nonlocal last, since
        now = time.perf_counter()
        seconds[last.value] = seconds.get(last.value, 0.0) + now - since
        last, since = stage, now

    request = SegmentationRequest(overlap=arguments.overlap, postprocessing=arguments.postprocessing)
    segment_study(arguments.scan, arguments.out, model, request, watch)
    watch(last, 1.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": round(peak)}))


if __name__ == "__main__":
    main()
