"""A phantom's CT series as one zip."""

import zipfile
from pathlib import Path

from training.phantom.phantom import draw_phantom
from training.phantom.write import write_dicom


def write_phantom_zip(folder: Path, spacing_mm: tuple[float, float, float], seed: int = 7) -> Path:
    """The zip's path; its slices lie beside it."""
    slices = folder / "phantom"
    slices.mkdir(parents=True)
    write_dicom(draw_phantom(seed, spacing_mm=spacing_mm), slices)
    path = folder / "phantom.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(slices.iterdir()):
            archive.write(file, file.name)
    return path
