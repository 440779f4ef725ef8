"""Logits of a scan by a model, whatever its GPU has room for."""

from dataclasses import dataclass
from pathlib import Path

from service.errors import InsufficientDeviceMemory, VisceraError
from service.imaging.volume import Notice
from service.inference.economy import Economy, low_memory
from service.inference.engines import Engine
from service.inference.logits import Logits
from service.inference.manifest import SlidingWindow
from service.inference.model import Model
from service.inference.predictor import Predictor
from service.inference.preprocessing import NetworkInput
from service.inference.sliding_window import predict_windows
from service.inference.spool import Spool
from service.progress import Progress, no_progress
from service.request import PostProcessing


@dataclass(frozen=True, eq=False)
class Prediction:
    """Logits, the engine that they are from, and what a reader should know of how they came about."""

    logits: Logits
    engine: Engine
    notices: tuple[Notice, ...]


def predict(
    network_input: NetworkInput,
    model: Model,
    predictor: Predictor,
    sliding_window: SlidingWindow,
    progress: Progress = no_progress,
    scratch: Path | None = None,
) -> Prediction:
    """The logits that the model gives with `predictor`, one of its own for some or all labels.

    A GPU that runs out of memory takes fewer windows at a time, then leaves the blending to the host; when that is
    still too much, the scan begins anew on the CPU. Every step is among the notices. Logits that would take much memory
    wait in a file of the folder `scratch`.

    Raises EngineUnavailable when the engine fails, InsufficientDeviceMemory when the GPU has too little memory and the
    CPU cannot run the bundle.
    """
    economy = Economy(predictor.device, predictor.batch_size)
    try:
        logits = predict_windows(network_input, predictor, sliding_window, progress, economy, Spool(scratch))
        return Prediction(logits, predictor.engine, economy.notices)
    except InsufficientDeviceMemory as error:
        reason = error.detail
    on_cpu = _same_on_cpu(model, predictor, reason)
    logits = predict_windows(network_input, on_cpu, sliding_window, progress, spool=Spool(scratch))
    notice = low_memory(f"the network ran on the CPU, with {on_cpu.engine.name}")
    return Prediction(logits, on_cpu.engine, (*economy.notices, notice))


def _same_on_cpu(model: Model, predictor: Predictor, reason: str) -> Predictor:
    try:
        return model.open_on_cpu().for_labels(predictor.labels, PostProcessing.NONE)
    except VisceraError as error:
        raise InsufficientDeviceMemory(f"{reason} The CPU cannot take over: {error.detail}") from error
