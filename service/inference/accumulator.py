"""Logits of the planes that a window may still touch, blended with the windows' weights.

Axes in names: C label; X, Y, Z the feature grid of a window or of the scan.
"""

import torch
from torch import Tensor

from service.inference.economy import Economy


class Accumulator:
    """As high as a window, as wide and deep as the scan, float32; on the device that the economy names."""

    def __init__(self, labels: int, shape: tuple[int, int], weight_XYZ: Tensor) -> None:
        """Nothing is set aside before the first window. `shape` is of a plane; the weights are those of a window."""
        self._shape = (labels, *shape, weight_XYZ.shape[2])
        self._weight_XYZ = weight_XYZ
        self._blended_CXYZ = torch.empty(0)
        self._total_weight_XYZ = torch.empty(0)

    def add(self, logits_CXYZ: Tensor, start: tuple[int, int], economy: Economy) -> None:
        """One window's logits, whose first column is at `start` of the plane.

        Raises torch.OutOfMemoryError when there is no memory for it on the host either.
        """
        self._settle(economy)
        device = economy.accumulates_on
        weight = self._weight_XYZ
        x, y = (slice(first, first + n) for first, n in zip(start, weight.shape, strict=False))
        self._blended_CXYZ[:, x, y].addcmul_(logits_CXYZ.to(device), weight)
        self._total_weight_XYZ[x, y] += weight

    def finished(self, planes: int) -> Tensor:
        """The lowest planes (C, X, Y, planes), which no window touches any more; a view."""
        return self._blended_CXYZ[..., :planes].div_(self._total_weight_XYZ[..., :planes])

    def forget(self, planes: int) -> None:
        """Drop the lowest planes; those above them move down."""
        for accumulator in (*self._blended_CXYZ, self._total_weight_XYZ):
            still_open = accumulator[..., planes:].clone()
            accumulator.zero_()[..., : still_open.shape[-1]] = still_open

    def _settle(self, economy: Economy) -> None:
        """Be where the economy wants it, which may be elsewhere once there turns out to be no room."""
        while not self._blended_CXYZ.numel() or self._blended_CXYZ.device != economy.accumulates_on:
            try:
                self._move(economy.accumulates_on)
            except torch.OutOfMemoryError:
                if not economy.tighten():
                    raise

    def _move(self, device: torch.device) -> None:
        self._weight_XYZ = self._weight_XYZ.to(device)
        if self._blended_CXYZ.numel():
            self._blended_CXYZ, self._total_weight_XYZ = (
                self._blended_CXYZ.to(device),
                self._total_weight_XYZ.to(device),
            )
        else:
            self._blended_CXYZ = torch.zeros(self._shape, device=device)
            self._total_weight_XYZ = torch.zeros(self._shape[1:], device=device)
