"""Seconds for one window of a bundle, backbone and head, on each CPU engine; all in one run, side by side.

    python benchmarks/window.py [BUNDLE] [--threads N]

Prints the best of several repetitions: other work on the machine only ever adds time. Peak memory is this process's
RSS.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch

from service.errors import EngineUnavailable
from service.inference.bundle import default_bundle_path, open_bundle
from service.inference.engines import open_engine
from service.inference.predictor import Predictor

REPETITIONS = 7


def main() -> None:
    """One line per engine."""
    parser = argparse.ArgumentParser(description="Seconds per window.")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle or default_bundle_path())
    size = bundle.manifest.sliding_window.roi_size
    window = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, *size)).astype(np.float32))
    print(
        f"{bundle.manifest.name}-{bundle.manifest.version}, window {'x'.join(map(str, size))}, "
        f"{len(bundle.manifest.labels)} labels, best of {REPETITIONS}"
    )
    reference = None
    for name in ("openvino", "onnxruntime"):
        try:
            predictor = Predictor(bundle, open_engine(bundle, name, threads=arguments.threads))
        except EngineUnavailable as error:
            print(f"{name:12s} {error.detail}")
            continue
        predictor(window)  # the first call compiles
        seconds = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            logits = predictor(window)
            seconds.append(time.perf_counter() - start)
        reference = logits if reference is None else reference
        error = float((logits - reference).abs().max() / reference.abs().max())
        print(f"{name:12s} {min(seconds):.3f} s   difference from the first engine {error:.1e}")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
