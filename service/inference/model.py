"""A model that is ready: bundle verified, engine open, self-test passed. Load once, run many."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.inference.bundle import Bundle, default_bundle_path, open_bundle
from service.inference.engines import DEFAULT_PRECISION, EngineName, open_engine
from service.inference.predictor import Predictor

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle and a predictor of all its labels, kept warm. `predictor.for_labels` gives a subset at no cost."""

    bundle: Bundle
    predictor: Predictor

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
        return self.predictor(windows)


def load_bundle(
    path: Path | str | None = None,
    *,
    engine: str = EngineName.AUTO,
    precision: str = DEFAULT_PRECISION,
    threads: int | None = None,
) -> Model:
    """Open the bundle at `path` (None: the default one) and its engine, and run the self-test.

    `precision` is one that the bundle offers. `threads` bounds the engine and, for this whole process, torch; None
    leaves both alone. Raises what open_bundle and open_engine raise, and SelfTestFailed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bundle = open_bundle(default_bundle_path() if path is None else Path(path))
    opened = open_engine(bundle, engine, precision=precision, threads=threads)
    bundle = bundle.without_files()
    predictor = Predictor(bundle, opened)
    predictor.self_test()
    return Model(bundle, predictor)
