"""Windows in, logits out: the engine's backbone and the text-driven head as one call."""

from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from service.errors import EngineUnavailable, SelfTestFailed
from service.inference.bundle import Bundle
from service.inference.engines import Engine
from service.inference.head import CHANNELS, head_logits, head_params
from service.inference.manifest import Label
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
        self._w_image = torch.from_numpy(bundle.head.w_image.copy())
        self._k = torch.from_numpy(bundle.head.k[rows])

    def for_labels(self, labels: Iterable[Label] | None, postprocessing: str = PostProcessing.VISCERA) -> Self:
        """The same bundle and engine for a subset of the bundle's labels; None for all."""
        return type(self)(self.bundle, self.engine, labels, postprocessing)

    def __call__(self, windows: Float32) -> Float32:
        """Logits (B, C, D/s, H/s, W/s) of normalised windows (B, D, H, W), both float32; C follows `labels`.

        Raises EngineUnavailable when the engine fails, or when its answer is not finite.
        """
        logits = self._logits(windows)
        # NaN is never above a threshold: unnoticed, it would come out as a healthy patient.
        if not np.isfinite(logits).all():
            raise EngineUnavailable(f"{self.engine.name} gave logits that are not finite.")
        return logits

    @torch.inference_mode()
    def _logits(self, windows: Float32) -> Float32:
        features_BFXYZ, pooled = self.engine.run(np.ascontiguousarray(windows[:, None], dtype=np.float32))
        params_BCP = head_params(_tensor(pooled), self._w_image, self._k)
        logits = [
            head_logits(_tensor(features).view(CHANNELS, -1), params)
            for features, params in zip(features_BFXYZ, params_BCP, strict=True)
        ]
        stacked: Float32 = torch.stack(logits).numpy()
        return stacked.reshape(len(windows), len(self.labels), *features_BFXYZ.shape[2:])

    def self_test(self) -> None:
        """Compare all labels of the sample window with the exporter's logits. SelfTestFailed when they differ."""
        sample, engine = self.bundle.sample, self.engine.name
        logits = self.for_labels(None)._logits(sample.window[:, 0])
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
        """What the self-test accepts of logits and of probabilities; the sample was among what the manifest states."""
        stated = self.bundle.precision(self.engine.precision).parity_of(self.engine.name)
        if stated is None:
            return LOGIT_TOLERANCE, PROBABILITY_TOLERANCE
        return (
            max(LOGIT_TOLERANCE, STATED_MARGIN * stated.max_relative_error),
            max(PROBABILITY_TOLERANCE, STATED_MARGIN * stated.max_probability_error),
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


def _tensor(array: Float32) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _sigmoid(logits: Float32) -> Float32:
    return torch.from_numpy(logits).sigmoid().numpy()
