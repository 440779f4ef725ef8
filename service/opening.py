"""The quick start of a process that segments a study or a few and ends: for a short scan it is much of the whole.

`benchmarks/pipeline.py` starts so, too. A worker, which opens a model once, imports as usual.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when it is timely, below
    from service.inference.model import Model
    from service.reporting.schema import Findings


def open_with_pipeline(
    path: Path | None,
    *,
    engine: str,
    precision: str,
    threads: int | None = None,
    engine_cache: Path | None = None,
) -> tuple[Model, Callable[..., Findings]]:
    """What `load_bundle` of these gives, and `segment_study`: the engine opens while the rest of the line is imported.

    Raises what load_bundle raises.
    """
    with _nothing_collected(), ThreadPoolExecutor(1) as beside:
        import torch

        from service.inference.model import load_bundle

        if threads is not None:
            torch.set_num_threads(threads)  # torch keeps the number for each thread, and this one runs the heads
        opening = beside.submit(
            load_bundle, path, engine=engine, precision=precision, threads=threads, engine_cache=engine_cache
        )
        from service.pipeline import segment_study

        return opening.result(), segment_study


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Leave out of garbage collection what is made here, for good: modules and a model live as long as the process.

    Otherwise the collector goes through them again and again during the imports, and once more at the end.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
