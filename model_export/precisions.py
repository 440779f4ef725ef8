"""The forms in which a bundle may offer its backbone, and what each must hold to be offered.

A smaller number format is judged by what comes out, the masks: its logits differ by more than rounding, and may. fp16
has a file of its own, half as large. bf16 has none: an engine rounds while it computes, on processors that can. int8 is
not among them: it did not hold (docs/weights.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from model_export.errors import ExportError


@dataclass(frozen=True)
class Precision:
    """One form of the backbone, with its tolerances; None: not what decides.

    `hint` is the number format that the engine is asked to compute in; None: that of the file.
    """

    name: str
    file: str
    hint: str | None = None
    max_relative_error: float | None = None
    least_dice: float | None = None


FP32 = Precision("fp32", "backbone.onnx", max_relative_error=1e-4)
FP16 = Precision("fp16", "backbone-fp16.onnx", least_dice=0.99)
BF16 = Precision("bf16", "backbone.onnx", hint="bf16", least_dice=0.99)
PRECISIONS = {precision.name: precision for precision in (FP32, FP16, BF16)}

DEFAULT_PRECISIONS = (FP32, BF16)  # those that cost no file of their own


def precisions_of(names: Iterable[str]) -> tuple[Precision, ...]:
    """The precisions of these names, fp32 first. Raises ExportError for an unknown name, or when fp32 is not named."""
    wanted = set(names)
    if unknown := sorted(wanted - PRECISIONS.keys()):
        raise ExportError(f"There is no precision {unknown[0]!r}; choose from {', '.join(PRECISIONS)}.")
    if FP32.name not in wanted:
        raise ExportError("Every bundle holds fp32, which the others are made from; name it too.")
    return tuple(precision for precision in PRECISIONS.values() if precision.name in wanted)
