"""The names that a dataset.json beside the data gives its label values, against those of the description.

A dataset that comes with its labels in another order must not be read in silence: an organ in the one name that is not
in the other is refused. Names that hold no organ (`cancer`, `tumour`) say nothing.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from training.datasets.errors import InvalidDescription

_ORGANS = {
    "spleen": "spleen", "kidney": "kidney", "gall": "gallbladder", "o?esophag": "esophagus", "liver": "liver",
    "stomach": "stomach", "a(or|ro)ta": "aorta", "(postcava|vena cava|ivc)": "inferior_vena_cava",
    "portal": "portal", "pancrea": "pancreas", "adrenal": "adrenal", "duoden": "duodenum", "lung": "lung",
    "colon": "colon", "rectum": "rectum", "(^|urinary )bladder": "urinary_bladder", "prostate": "prostate",
    "femur": "femur", "celiac": "celiac",
}  # fmt: skip
_SIDES = {"right": r"(right|^r[ -])", "left": r"(left|^l[ -])"}


def check_published_names(folder: Path, values: Mapping[int, tuple[str, ...]]) -> None:
    """Raises InvalidDescription where a dataset.json of the folder names another organ or side for a value."""
    for path in sorted(folder.rglob("dataset.json")):
        published = _labels(path)
        for value, said in published.items():
            ours = values.get(value)
            if ours and (wrong := _contradiction(said, " ".join(ours))):
                raise InvalidDescription(
                    f"{path.name} calls label {value} {said!r}, the description {', '.join(ours)} ({wrong}). "
                    "Describe this copy of the dataset in a YAML of its own."
                )


def _labels(path: Path) -> dict[int, str]:
    """Names by value; both directions of the table are in use. Files without one say nothing."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8-sig")).get("labels", {})
        pairs = [(str(key), str(value)) for key, value in labels.items()]
    except (OSError, ValueError, AttributeError):
        return {}
    named = [(key, value) if key.isdecimal() else (value, key) for key, value in pairs]
    return {int(value): name for value, name in named if value.isdecimal()}


def _contradiction(said: str, ours: str) -> str | None:
    words = re.sub(r"[_\s]+", " ", said.lower()).strip()
    for pattern, organ in _ORGANS.items():
        if re.search(pattern, words) and organ not in ours:
            return f"not {organ}"
    for side, pattern in _SIDES.items():
        other = "left" if side == "right" else "right"
        if re.search(pattern, words) and other in ours and side not in ours:
            return f"not {side}"
    return None
