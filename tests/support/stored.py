"""What lies in the folders of the storage, also while it changes: unlike `Path.rglob`, `os.walk` bears what goes."""

import os
from pathlib import Path

AREAS = ("uploads", "results", "scratch")


def stored_paths(data_dir: Path) -> list[Path]:
    """Every file and folder of uploads, results and attempts, where alone a job may leave anything."""
    return [
        Path(folder) / name
        for area in AREAS
        for folder, folders, files in os.walk(data_dir / area)
        for name in (*folders, *files)
    ]


def stored_files(data_dir: Path) -> list[str]:
    """The files among them, relative to `data_dir`, sorted."""
    return sorted(path.relative_to(data_dir).as_posix() for path in stored_paths(data_dir) if path.is_file())
