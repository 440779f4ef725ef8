"""Whether a reconstruction kernel is soft or sharp, from the names that the makers give.

Sharp kernels (lung, bone) amplify noise and overshoot at edges; soft ones are what organs and lesions are read in. A
name that is not known here is repeated nowhere: ConvolutionKernel is free text of the sender.
"""

import re
from enum import StrEnum


class KernelKind(StrEnum):
    """What a kernel is made for."""

    SOFT = "soft"
    SHARP = "sharp"
    UNKNOWN = "unknown"


# Siemens: a letter or two for the body part, two digits from 10 (smoothest) to 90: B30f, Br40d, I31f, Qr36.
_SIEMENS = re.compile(r"(?:[BHICUTDJ]|B[RLVF]|H[RCDVP]|Q[RA]|S[AR]|U[HR]?)(\d\d)[A-Z]?", re.IGNORECASE)
_SIEMENS_SHARP_FROM = 50
# Canon and Toshiba: FC and two digits in families; 01 to 29 are body and soft tissue, the others bone, lung, inner ear.
_CANON = re.compile(r"FC(\d\d)[A-Z]?", re.IGNORECASE)
_CANON_SOFT = range(1, 30)

_SOFT = frozenset({
    "STANDARD", "STND", "SOFT", "DETAIL",  # GE
    "A", "AA", "B", "SB", "C", "UA", "UB",  # Philips
    "BODY", "SMOOTH", "SOFT TISSUE",
})  # fmt: skip
_SHARP = frozenset({
    "LUNG", "BONE", "BONEPLUS", "EDGE", "ULTRA", "CHST", "CHEST", "HD LUNG", "HD BONE",  # GE
    "D", "E", "L", "YA", "YB", "YC", "YD", "EB", "EC",  # Philips
    "SHARP",
})  # fmt: skip


def kernel_kind(kernel: str) -> KernelKind:
    """The kind of a ConvolutionKernel value; of several parts (`Br38f\\3`) the first decides."""
    name = kernel.split("\\")[0].strip()
    if siemens := _SIEMENS.fullmatch(name):
        return KernelKind.SHARP if int(siemens[1]) >= _SIEMENS_SHARP_FROM else KernelKind.SOFT
    if canon := _CANON.fullmatch(name):
        return KernelKind.SOFT if int(canon[1]) in _CANON_SOFT else KernelKind.SHARP
    if name.upper() in _SOFT:
        return KernelKind.SOFT
    return KernelKind.SHARP if name.upper() in _SHARP else KernelKind.UNKNOWN
