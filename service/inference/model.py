"""A model that is ready: bundle verified, engine open, self-test passed. Load once, run many."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.errors import EngineUnavailable
from service.inference.bundle import Bundle, default_bundle_path, open_bundle
from service.inference.engines import CPU_ENGINES, DEFAULT_PRECISION, EngineName, open_engine
from service.inference.predictor import Predictor

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle and a predictor of all its labels, kept warm. `predictor.for_labels` gives a subset at no cost.

    `open_on_cpu` opens the same bundle with an engine of the CPU, for a scan that the GPU has too little memory for; it
    raises what load_bundle raises.
    """

    bundle: Bundle
    predictor: Predictor
    open_on_cpu: Callable[[], Predictor]

    def logits(self, windows: Float32) -> Float32:
        """Logits of all labels for windows of the model grid, nothing blended, thresholded or post-processed.

        `windows` is float32 (B, D, H, W) or (B, 1, D, H, W): RAS axes x, y, z at the manifest's spacing, HU already
        mapped to the manifest's output range, edges multiples of 16 voxels. The answer is float32
        (B, C, D/s, H/s, W/s), C in the manifest's order and s its feature stride.

        Raises ValueError for another shape, EngineUnavailable when the engine fails or gives what is not finite.
        """
        if windows.ndim == 5 and windows.shape[1] == 1:
            windows = windows[:, 0]
        if windows.ndim != 4 or any(edge < 16 or edge % 16 for edge in windows.shape[1:]):
            raise ValueError(f"Windows are (B, D, H, W) with edges in multiples of 16 voxels, not {windows.shape}.")
        logits: Float32 = self.predictor(torch.from_numpy(windows).to(self.predictor.device)).cpu().numpy()
        return logits


def load_bundle(
    path: Path | str | None = None,
    *,
    engine: str = EngineName.AUTO,
    precision: str = DEFAULT_PRECISION,
    threads: int | None = None,
    engine_cache: Path | None = None,
) -> Model:
    """Open the bundle at `path` (None: the default one) and its engine, and run the self-test.

    `precision` is one that the bundle offers, or `auto`. `threads` bounds the engine and, for this whole process,
    torch; None leaves both alone. `engine_cache` is the folder for what TensorRT compiles; None: in the user's cache.
    Raises what open_bundle and open_engine raise, and SelfTestFailed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    path = default_bundle_path() if path is None else Path(path)
    bundle = open_bundle(path)
    opened = open_engine(bundle, engine, precision=precision, threads=threads, cache=engine_cache)
    bundle = bundle.without_files()
    predictor = Predictor(bundle, opened)
    predictor.self_test()
    return Model(bundle, predictor, partial(_open_on_cpu, path, bundle.sha256, precision, threads))


def _open_on_cpu(path: Path, sha256: str, precision: str, threads: int | None) -> Predictor:
    bundle = open_bundle(path)
    if bundle.sha256 != sha256:
        raise EngineUnavailable(f"{bundle.manifest.name} is no longer the bundle that was loaded; start anew.")
    opened = open_engine(bundle, precision=precision, threads=threads, auto=CPU_ENGINES)
    predictor = Predictor(bundle.without_files(), opened)
    predictor.self_test()
    return predictor
