"""Labels that a model fills in where nobody annotated: for scans without labels, and to keep what a model knew.

A model that is trained further on a few labels forgets the others unless it goes on seeing them. Annotated labels stay
as they are; what was filled in is trained on like them, but never taken for the truth of an evaluation. Test scans are
left out.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from rich.progress import track

from training.assembly import Split, open_assembly
from training.commands import export, segment
from training.datasets.errors import NoCases, UnreadableFile
from training.datasets.harmonize import ScanSource
from training.evaluation.subjects import write_scan
from training.label_table import STANDARD, LabelTable, write_store_table
from training.labels import ORGANS
from training.phantom.tissues import Tissue
from training.store import Case, encode_case, open_case, write_case


def fill_in(store: Path, out: Path, *, weights: Path | str | None, labels: Sequence[str] | None = None) -> list[str]:
    """Writes the scans of a store with more labels into the store `out`, and gives their names.

    `weights` is a bundle by path or name (None: the default) or a checkpoint (.pt); `labels` are those to fill in, by
    default all organs of the 32. Raises ValueError for an unknown label, NoCases, CommandError, UnreadableFile for a
    label that the model does not have.
    """
    wanted = [organ.name for organ in ORGANS] if labels is None else list(labels)
    assembly = open_assembly(store)
    table = assembly.table
    if unknown := sorted(set(wanted) - table.by_name.keys()):
        raise ValueError(f"Unknown labels {', '.join(unknown)}; known: {', '.join(table.names)}.")
    names = [name for name in assembly.scans if assembly.splits[name] is not Split.TEST]
    if not names:
        raise NoCases(f"{store.name} holds test scans only.")
    bundle = None if weights is None else str(weights)
    if bundle is not None and bundle.endswith(".pt"):
        bundle = str(export(Path(bundle), out / "bundle"))
    studies = [write_scan(store, name, assembly.scans[name], out / "studies") for name in names]
    segment(studies, out / "segmented", bundle)
    write_store_table(out, table)
    for name in track(names, description="Cases"):
        masks = {label: _read_mask(out / "segmented" / name / "masks" / f"{label}.nii.gz") for label in wanted}
        case, source = filled(open_case(store, name), assembly.scans[name], masks, table)
        write_case(out, name, case, source=asdict(source))
    return names


def filled(
    case: Case, source: ScanSource, masks: dict[str, NDArray[np.bool_]], table: LabelTable = STANDARD
) -> tuple[Case, ScanSource]:
    """A scan with the masks (X,Y,Z), RAS, of labels that were not annotated in it."""
    assert case.hu is not None
    bits = case.labels[case.codes]
    supervised = case.supervised
    added = [name for name in masks if not supervised & table.bits([name])]
    for name in added:
        bits[masks[name]] |= np.uint64(table.bits([name]))
        supervised |= table.bits([name])
    rng = np.random.default_rng(int(source.fingerprint[:16], 16))
    tissue = np.full(bits.shape, Tissue.AIR, np.uint8)
    again = encode_case(tissue, bits, rng, supervised=supervised, hu=np.asarray(case.hu))
    return again, replace(source, pseudo=(*source.pseudo, *added))


def _read_mask(path: Path) -> NDArray[np.bool_]:
    try:
        image = nibabel.Nifti1Image.from_filename(path)
        mask = np.asarray(image.dataobj) > 0
    except Exception as error:  # nibabel, zlib and gzip raise many types for a broken or absent file
        raise UnreadableFile(f"The result has no readable mask {path.name}: {type(error).__name__}.") from error
    turned: NDArray[np.bool_] = apply_orientation(mask, io_orientation(image.affine))  # type: ignore[no-untyped-call]
    return turned
