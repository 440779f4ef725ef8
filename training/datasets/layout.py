"""From a downloaded folder to its cases: which files belong to which case."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from training.datasets.description import DatasetDescription
from training.datasets.errors import NoCases

_PARTS = re.compile(r"(\*\*/|\*|\{(?:case|structure)(?::[^{}]+)?\})")
_NAME = r"[^/]+?"


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case, in natural order of their names. `structures` names the structure of each label file."""

    case: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    structures: tuple[str, ...] = ()


def find_cases(folder: Path, description: DatasetDescription) -> list[CaseFiles]:
    """All cases below a folder, in natural order; those the description excludes too. Raises NoCases."""
    image_pattern = path_pattern(description.image)
    label_pattern = path_pattern(description.label) if description.label else None
    images: dict[str, list[Path]] = defaultdict(list)
    labels: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for path in sorted(folder.rglob("*"), key=lambda path: natural_key(path.as_posix())):
        relative = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        # An image's name is often a label's with something added, such as `_0000`.
        if found := image_pattern.fullmatch(relative):
            images[found["case"]].append(path)
        elif label_pattern and (found := label_pattern.fullmatch(relative)):
            labels[found["case"]].append((path, found.groupdict().get("structure") or ""))
    if not images:
        raise NoCases(f"{folder.name} has no image that fits {description.image!r}; is it {description.title}?")
    return [
        CaseFiles(
            case,
            tuple(images[case]),
            tuple(path for path, _ in labels[case]),
            tuple(structure for _, structure in labels[case]) if description.structures else (),
        )
        for case in sorted(images, key=natural_key)
    ]


def path_pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a path template of a description."""
    pieces = []
    for part in _PARTS.split(template):
        if part == "**/":
            pieces.append("(?:.*/)?")
        elif part == "*":
            pieces.append("[^/]*")
        elif part.startswith("{") and part.endswith("}"):
            name, _, narrow = part[1:-1].partition(":")
            pieces.append(f"(?P<{name}>{narrow or _NAME})")
        else:
            pieces.append(re.escape(part))
    return re.compile("".join(pieces))


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts names with numbers as people do: 2 before 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part != ""]
