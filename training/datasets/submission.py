"""Results as a challenge wants them: one label map per study, with the dataset's own values."""

from pathlib import Path

import nibabel
import numpy as np

from training.datasets.description import DatasetDescription, single_names
from training.datasets.errors import AmbiguousLabelOrder, NoCases, UnreadableFile
from training.datasets.labelling import to_dataset_values


def write_submission(
    results: Path, description: DatasetDescription, out: Path, *, order: str | None = None
) -> list[Path]:
    """A label map `out`/<study>.nii.gz for each folder of results, on the study's grid; gives their paths.

    Raises NoCases for a folder without results, AmbiguousLabelOrder, UnreadableFile for a mask that is absent or
    broken.
    """
    table = description.orders.get(order or "", description.values)
    if not table:
        raise AmbiguousLabelOrder(f"{description.name} has the label orders {', '.join(description.orders)}; name one.")
    studies = sorted(path.parent for path in results.glob("*/masks"))
    if not studies:
        raise NoCases(f"{results.name} holds no results of `viscera segment`.")
    out.mkdir(parents=True, exist_ok=True)
    return [_write(study, table, out / f"{study.name}.nii.gz") for study in studies]


def _write(study: Path, table: dict[int, tuple[str, ...]], path: Path) -> Path:
    masks = {}
    image = None
    for name in dict.fromkeys(single for names in table.values() for single in single_names(names[-1:])):
        file = study / "masks" / f"{name}.nii.gz"
        try:
            image = nibabel.Nifti1Image.from_filename(file)
            masks[name] = np.asarray(image.dataobj) > 0
        except Exception as error:  # nibabel, zlib and gzip raise many types for a broken file
            raise UnreadableFile(f"{study.name} has no readable mask of {name}: {type(error).__name__}.") from error
    assert image is not None
    labels = nibabel.Nifti1Image(to_dataset_values(masks, table), image.affine)  # type: ignore[no-untyped-call]
    labels.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    nibabel.save(labels, path)
    return path
