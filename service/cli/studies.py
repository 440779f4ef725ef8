"""Several studies in one command: what each is called here, and the folder its results go to."""

from collections.abc import Iterator, Sequence
from pathlib import Path

STUDY_SUFFIXES = (".nii.gz", ".nii", ".zip")


def folders_for(studies: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """Each study and the folder for its results: `out` itself, or below it a folder of the study's name."""
    if len(studies) == 1:
        yield studies[0], out
        return
    taken: set[str] = set()
    for study in studies:
        base = name = study_name(study)
        number = 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name)
        yield study, out / name


def study_name(study: Path) -> str:
    """The file's or folder's name without a known suffix."""
    name = study.resolve().name
    suffix = next((suffix for suffix in STUDY_SUFFIXES if name.lower().endswith(suffix)), "")
    return name.removesuffix(name[len(name) - len(suffix) :]) if suffix else name
