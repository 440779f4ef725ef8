"""A model that is ready: bundle verified, engine open, self-test passed. Load once, run many."""

from dataclasses import dataclass
from pathlib import Path

import torch

from service.inference.bundle import Bundle, default_bundle_path, open_bundle
from service.inference.engines import EngineName, open_engine
from service.inference.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Model:
    """A bundle and a predictor of all its labels, kept warm. `predictor.for_labels` gives a subset at no cost."""

    bundle: Bundle
    predictor: Predictor


def load_model(bundle_path: Path | None = None, engine: str = EngineName.AUTO, threads: int | None = None) -> Model:
    """Open the bundle (None: the default one) and its engine, and run the self-test.

    `threads` bounds the engine and, for this whole process, torch; None leaves both alone.
    Raises what open_bundle and open_engine raise, and SelfTestFailed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bundle = open_bundle(default_bundle_path() if bundle_path is None else bundle_path)
    predictor = Predictor(bundle, open_engine(bundle, engine, threads))
    predictor.self_test()
    return Model(bundle, predictor)
