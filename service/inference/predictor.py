"""Windows in, logits out: the engine's backbone and the text-driven head as one call."""

from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.errors import EngineUnavailable, SelfTestFailed
from service.inference.bundle import Bundle
from service.inference.engines import Engine
from service.inference.failures import typed_failures
from service.inference.head import CHANNELS, head_logits, head_params
from service.inference.manifest import Label
from service.metrics import WINDOWS
from service.request import PostProcessing

Float32 = NDArray[np.float32]

LOGIT_TOLERANCE = 5e-3
"""Largest difference to the sample's logits that the self-test accepts in any precision, relative to the largest."""
PROBABILITY_TOLERANCE = 0.02
"""Largest difference in probability that the self-test accepts in any precision."""
STATED_MARGIN = 2.0
"""How many times the error that the manifest states for a precision the self-test accepts: processors round unalike."""


class Predictor:
    """Predicts `labels` of a bundle with an engine.

    `labels` keeps the bundle's order and holds, besides the labels asked for, those that their post-processing looks
    at, such as the hosts of a lesion.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        labels: Iterable[Label] | None = None,
        postprocessing: str = PostProcessing.VISCERA,
    ) -> None:
        """All labels of the bundle for None."""
        self.bundle = bundle
        self.engine = engine
        wanted = bundle.manifest.labels if labels is None else tuple(labels)
        self.labels = _with_companions(bundle, wanted, postprocessing)
        self.feature_stride: int = bundle.manifest.backbone.feature_stride
        rows = [bundle.manifest.labels.index(label) for label in self.labels]
        self._w_image = torch.from_numpy(bundle.head.w_image.copy()).to(engine.device)
        self._k = torch.from_numpy(bundle.head.k[rows]).to(engine.device)

    @property
    def device(self) -> torch.device:
        """Where windows are taken and logits given."""
        return self.engine.device

    @property
    def batch_size(self) -> int:
        """How many windows the engine takes at once to run well."""
        return self.engine.batch_size

    def for_labels(self, labels: Iterable[Label] | None, postprocessing: str = PostProcessing.VISCERA) -> Self:
        """The same bundle and engine for a subset of the bundle's labels; None for all."""
        return type(self)(self.bundle, self.engine, labels, postprocessing)

    def __call__(self, windows: Tensor, spent: Tensor | None = None) -> Tensor:
        """Logits (B, C, D/s, H/s, W/s) of normalised windows (B, D, H, W); C follows `labels`.

        Both are float32 on `device`. `spent` is an earlier answer that nobody needs any more; if the new one is of its
        shape, it takes its memory. Raises EngineUnavailable when the engine fails, or when its answer is not finite;
        InsufficientDeviceMemory when the device has no memory left.
        """
        with typed_failures(self.engine.name, self.device):
            logits = self._logits(windows, spent)
            # NaN is never above a threshold: unnoticed, it would come out as a healthy patient.
            lowest, highest = torch.aminmax(logits)
            if not bool(torch.isfinite(lowest) & torch.isfinite(highest)):
                raise EngineUnavailable(f"{self.engine.name} gave logits that are not finite.")
        WINDOWS.inc(len(windows))
        return logits

    @torch.inference_mode()
    def _logits(self, windows: Tensor, spent: Tensor | None = None) -> Tensor:
        features_BFXYZ, pooled = self.engine.run(windows[:, None].contiguous())
        params_BCP = head_params(pooled, self._w_image, self._k)
        shape = (len(windows), len(self.labels), *features_BFXYZ.shape[2:])
        # A window's logits are 113 MB at stride 1: pages that the system clears first, each time that they are new.
        logits_BCXYZ = spent if spent is not None and spent.shape == shape else features_BFXYZ.new_empty(shape)
        for features, params, logits in zip(features_BFXYZ, params_BCP, logits_BCXYZ, strict=True):
            head_logits(features.view(CHANNELS, -1), params, into=logits.view(len(self.labels), -1))
        return logits_BCXYZ

    def self_test(self) -> None:
        """Compare all labels of the sample window with the exporter's logits. SelfTestFailed when they differ."""
        sample, engine = self.bundle.sample, self.engine.name
        logits: Float32 = (
            self.for_labels(None)._logits(torch.from_numpy(sample.window[:, 0]).to(self.device)).cpu().numpy()
        )
        if logits.shape != sample.logits.shape:
            raise SelfTestFailed(
                f"{engine} gives logits of shape {logits.shape}; the sample has {sample.logits.shape}."
            )
        if not np.isfinite(logits).all():
            raise SelfTestFailed(f"{engine} gives logits that are not finite.")
        error = float(np.abs(logits - sample.logits).max() / max(np.abs(sample.logits).max(), 1e-6))
        drift = float(np.abs(_sigmoid(logits) - _sigmoid(sample.logits)).max())
        most_error, most_drift = self._tolerances()
        if error > most_error or drift > most_drift:
            raise SelfTestFailed(
                f"{engine} in {self.engine.precision} differs from the sample of {self.bundle.manifest.name} by "
                f"{error:.1e} in logits (at most {most_error:.0e}) and {drift:.1e} in probability (at most "
                f"{most_drift:g}). Try another engine or precision; if that fails too, fetch the bundle again."
            )

    def _tolerances(self) -> tuple[float, float]:
        """What the self-test accepts of logits and of probabilities; the sample was among what the manifest states.

        Of an engine that the bundle was not measured on, as much as of any that it was: the precision is the same.
        """
        precision = self.bundle.precision(self.engine.precision)
        own = precision.parity_of(self.engine.name)
        stated = precision.parity if own is None else (own,)
        return (
            max(LOGIT_TOLERANCE, *(STATED_MARGIN * parity.max_relative_error for parity in stated)),
            max(PROBABILITY_TOLERANCE, *(STATED_MARGIN * parity.max_probability_error for parity in stated)),
        )


def _with_companions(bundle: Bundle, wanted: tuple[Label, ...], postprocessing: str) -> tuple[Label, ...]:
    """The wanted labels and all that their rules look at, and what the rules of those look at, and so on."""
    names = {label.name for label in wanted}
    while True:
        more = {
            name
            for label in bundle.manifest.labels
            if label.name in names
            for name in label.companions(postprocessing) - names
        }
        if not more:
            return tuple(label for label in bundle.manifest.labels if label.name in names)
        names |= more


def _sigmoid(logits: Float32) -> Float32:
    return torch.from_numpy(logits).sigmoid().numpy()
