"""Seconds for one window of a bundle, backbone and head, on each CPU engine; all in one run, side by side.

OpenVINO runs twice: as the service has it, and with every convolution as it is in the file (`plain`).

    python -m benchmarks.window [BUNDLE] [--threads N]

Prints the seconds that opening takes, self-test included, and the best of several repetitions: other work on the
machine only ever adds time. How far an engine is off is looked at on noise and on air. The floor is the backbone's
operations over the rate of a float32 matrix product in the same run. Peak memory is this process's RSS.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.floor import matrix_rate, operations
from service.errors import EngineUnavailable
from service.inference.bundle import Bundle, default_bundle_path, open_bundle
from service.inference.engines import DEFAULT_PRECISION, Engine, open_engine
from service.inference.predictor import Predictor

REPETITIONS = 7


def plain_openvino(bundle: Bundle, threads: int | None) -> Engine:
    """OpenVINO without `service.inference.winograd`."""
    with patch("service.inference.winograd.multiply_less"):
        return open_engine(bundle, "openvino", threads=threads)


def main() -> None:
    """One line per engine."""
    parser = argparse.ArgumentParser(description="Seconds per window.")
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle or default_bundle_path())
    size = bundle.manifest.sliding_window.roi_size
    window = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, *size)).astype(np.float32))
    air = torch.full_like(window, bundle.manifest.preprocessing.output_range[0])
    print(
        f"{bundle.manifest.name}-{bundle.manifest.version}, window {'x'.join(map(str, size))}, "
        f"{len(bundle.manifest.labels)} labels, best of {REPETITIONS}"
    )
    needed = operations(bundle.backbone(bundle.precision(DEFAULT_PRECISION)), size)
    rate = matrix_rate()
    floor = needed / rate
    print(f"backbone {needed / 1e9:.0f} GFLOP, float32 matrices {rate / 1e9:.0f} GFLOP/s: floor {floor:.3f} s")
    references = None
    engines: dict[str, Callable[[], Engine]] = {
        "openvino": lambda: open_engine(bundle, "openvino", threads=arguments.threads),
        "openvino, plain": lambda: plain_openvino(bundle, arguments.threads),
        "onnxruntime": lambda: open_engine(bundle, "onnxruntime", threads=arguments.threads),
    }
    for name, opened in engines.items():
        start = time.perf_counter()
        try:
            predictor = Predictor(bundle, opened())
            predictor.self_test()
        except EngineUnavailable as error:
            print(f"{name:15s} {error.detail}")
            continue
        opening = time.perf_counter() - start
        answers = [predictor(scene) for scene in (window, air)]
        seconds = []
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            predictor(window)
            seconds.append(time.perf_counter() - start)
        references = answers if references is None else references
        error = max(
            float((answer - reference).abs().max() / reference.abs().max())
            for answer, reference in zip(answers, references, strict=True)
        )
        best = min(seconds)
        print(
            f"{name:15s} opened in {opening:.1f} s   {best:.3f} s   {best / floor:.1f} times the floor   "
            f"off the first engine by {error:.1e}"
        )
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
