"""Attributes of strangers' datasets: a value that is well formed, or None.

What must be there is decided where it is used, not here.
"""

import math
import re
from collections.abc import Sequence
from typing import Protocol

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

_UID = re.compile(r"[0-9.]{1,64}")
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")


class Attributes(Protocol):
    """What holds attributes by keyword: a dataset, or several laid over each other."""

    def get(self, keyword: str, /) -> object:
        """The value, or None where there is none."""
        ...

    def __contains__(self, keyword: str, /) -> bool: ...


class Layers:
    """Datasets laid over each other: the first that has an attribute gives it.

    In multi-frame objects a frame's own macros lie over the shared ones, and these over the object (PS3.3 C.7.6.16).
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = datasets

    def get(self, keyword: str, /) -> object:
        """The value in the topmost dataset that has the attribute."""
        return next((dataset.get(keyword) for dataset in self._datasets if keyword in dataset), None)

    def __contains__(self, keyword: str, /) -> bool:
        return any(keyword in dataset for dataset in self._datasets)


def is_uid(text: str) -> bool:
    """Whether a text can stand in results as a UID; anything else may hold patient data."""
    return _UID.fullmatch(text) is not None


def texts(attributes: Attributes, keyword: str) -> list[str]:
    """All values of an attribute as texts without padding; empty where it is absent or malformed."""
    value = _value(attributes, keyword)
    if value is None:
        return []
    many = list(value) if isinstance(value, MultiValue) else [value]
    return [str(item).strip().strip("\0") for item in many]


def text(attributes: Attributes, keyword: str) -> str:
    """The value as one text, empty where it is absent or malformed."""
    return "\\".join(texts(attributes, keyword))


def numbers(attributes: Attributes, keyword: str, count: int, largest: float = math.inf) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, none larger than `largest` either way; or None."""
    try:
        found = tuple(float(item) for item in texts(attributes, keyword))
    except (ValueError, OverflowError):
        return None
    usable = len(found) == count and all(map(math.isfinite, found)) and max(map(abs, found)) <= largest
    return found if usable else None


def number(attributes: Attributes, keyword: str) -> float | None:
    """One finite number, or None."""
    found = numbers(attributes, keyword, 1)
    return found[0] if found else None


def integer(attributes: Attributes, keyword: str) -> int | None:
    """One number cut to an integer, or None."""
    found = number(attributes, keyword)
    return int(found) if found is not None else None


def items(attributes: Attributes, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or malformed."""
    value = _value(attributes, keyword)
    return [item for item in value if isinstance(item, Dataset)] if isinstance(value, Sequence) else []


def code_string(attributes: Attributes, keyword: str) -> str:
    """A code string (VR CS) in capitals; empty if it is none, since anything else is not repeated to anyone."""
    found = text(attributes, keyword).upper()
    return found if _CODE_STRING.fullmatch(found) else ""


def _value(attributes: Attributes, keyword: str) -> object | None:
    """The element's value, or None where it is absent, empty or malformed."""
    try:
        return attributes.get(keyword)
    except (ValueError, TypeError, OverflowError, ArithmeticError, AttributeError, NotImplementedError):
        return None
