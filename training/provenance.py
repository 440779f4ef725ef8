"""What a run was made of, in one JSON file beside its checkpoints: recipe, code, text, weights and data, by hash."""

import hashlib
import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.assembly import Assembly, Split
from training.recipe import Recipe
from training.text import TextProvenance


def describe_run(
    path: Path, recipe: Recipe, text: TextProvenance, start_from: Path | None, scans: Assembly | None
) -> None:
    """Writes the file; a resumed run writes what it is made of now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = recipe.model_dump(mode="json")
    facts: dict[str, Any] = {
        "recipe": settings,
        "recipe_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "commit": commit(),
        "text": asdict(text),
        "started_from": None if start_from is None else {"name": start_from.name, "sha256": _sha256(start_from)},
        "scans": None if scans is None else _scans(scans),
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def commit() -> str | None:
    """The commit of the code, with `-dirty` if files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None


def _scans(scans: Assembly) -> dict[str, Any]:
    """How many of each dataset in each split, and one hash of all images and their splits."""
    listed = sorted(f"{name} {source.fingerprint} {scans.splits[name].name}" for name, source in scans.scans.items())
    return {
        "sha256": hashlib.sha256("\n".join(listed).encode()).hexdigest(),
        "splits": {
            split.name.lower(): {dataset: len(names) for dataset, names in scans.datasets(split).items()}
            for split in Split
        },
    }


def _sha256(path: Path) -> str:
    """Of a checkpoint, or of a bundle's manifest, which holds the hashes of its files."""
    return hashlib.sha256((path if path.is_file() else path / "manifest.json").read_bytes()).hexdigest()
