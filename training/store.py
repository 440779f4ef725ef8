"""A folder of cases that training crops from: phantoms and scans, memory-mapped, one file of codes each.

A voxel's code stands for a pair (tissue, labels); a case has far fewer than 256 of them, so a whole trunk at 2 mm is
8 MB and a crop touches little disk. The HU of a phantom are rendered anew for every crop: each visit shows another scan
of the patient. A scan has its own HU in a second file, and no tissues.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.label_table import MOST_LABELS, LabelMap
from training.phantom.anatomy import rasterize, sample_anatomy
from training.pools import process_pool

CENTERS_PER_LABEL = 256
_META = ".meta.npz"

CaseKey: TypeAlias = int | str  #: the seed of a phantom, or the name of a scan


@dataclass(frozen=True)
class Case:
    """One label map, with the image that it was drawn on or without.

    `codes` uint8 (X,Y,Z), RAS; `tissues` uint8 (K,) and `labels` uint64 (K,) give each code its meaning (bit c is
    channel c); `centers` int16 (N,3) are voxels to crop around, `center_channel` uint8 (N,) the label of each;
    `supervised` says in such bits which labels were annotated. `hu` int16 (X,Y,Z) is the image of a scan, whose tissues
    mean nothing; a phantom has none.
    """

    codes: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    labels: NDArray[np.uint64]
    centers: NDArray[np.int16]
    center_channel: NDArray[np.uint8]
    supervised: int
    hu: NDArray[np.int16] | None = None


def trunk_grid(spacing_mm: float) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the whole trunk the phantom can fill: 440 x 340 x 700 mm around its origin."""
    extent = np.array([440.0, 340.0, 700.0])
    shape = tuple(int(n) for n in np.ceil(extent / spacing_mm))
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) * spacing_mm / 2.0
    return (shape[0], shape[1], shape[2]), affine


def build_phantom_store(folder: Path, seeds: range, spacing_mm: float, processes: int | None = None) -> None:
    """Writes the cases of the given seeds that are not there yet; safe to interrupt and call again.

    `processes` draw at a time; None: one per core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not has_case(folder, seed)]
    if not missing:
        return
    with process_pool(processes) as pool:
        jobs = [pool.submit(_write_phantom, folder, seed, spacing_mm) for seed in missing]
        for job in track(jobs, description="Phantoms"):
            job.result()


@contextmanager
def drawing_beside(folder: Path, seeds: range, spacing_mm: float, processes: int) -> Iterator[None]:
    """Draws the missing cases, in order, while the block runs; those not begun when it ends are left out."""
    missing = [seed for seed in seeds if not has_case(folder, seed)]
    if not missing:
        yield
        return
    with process_pool(processes) as pool:
        for seed in missing:
            pool.submit(_write_phantom, folder, seed, spacing_mm)
        try:
            yield
        finally:
            pool.shutdown(cancel_futures=True)


def has_case(folder: Path, key: CaseKey) -> bool:
    """Whether the case is there, and complete."""
    return _meta_path(folder, key).exists()


def open_case(folder: Path, key: CaseKey) -> Case:
    """A case, its voxels mapped from disk. Raises FileNotFoundError."""
    with np.load(_meta_path(folder, key)) as meta:
        return Case(
            codes=np.load(_codes_path(folder, key), mmap_mode="c"),
            hu=np.load(_hu_path(folder, key), mmap_mode="c") if isinstance(key, str) else None,
            tissues=meta["tissues"],
            labels=meta["labels"],
            centers=meta["centers"],
            center_channel=meta["center_channel"],
            supervised=int(meta["supervised"]),
        )


def scan_names(folder: Path) -> list[str]:
    """Names of the scans of a store, sorted; phantoms, whose names are numbers, are not among them."""
    names = (path.name.removesuffix(_META) for path in folder.glob(f"[!.]*{_META}"))
    return sorted(name for name in names if not name.isdecimal())


def read_source(folder: Path, key: CaseKey) -> dict[str, Any]:
    """What was noted of a case's origin when it was written. Raises FileNotFoundError."""
    with np.load(_meta_path(folder, key)) as meta:
        source: dict[str, Any] = json.loads(str(meta["source"]))
        return source


def encode_case(
    tissue: NDArray[np.uint8],
    labels: LabelMap,
    rng: np.random.Generator,
    *,
    supervised: int = 0xFFFFFFFF,
    hu: NDArray[np.int16] | None = None,
) -> Case:
    """The case of a tissue map and a label map (X,Y,Z). Raises ValueError for more than 256 kinds of voxels."""
    unlabelled = labels == 0  # most voxels; sorting them all would take longer than to draw the patient
    bare = np.flatnonzero(np.bincount(tissue[unlabelled], minlength=256))
    combinations, rank = np.unique(labels[~unlabelled], return_inverse=True)
    pairs = tissue[~unlabelled].astype(np.int64) * max(1, len(combinations)) + rank
    labelled, inverse = np.unique(pairs, return_inverse=True)
    if len(bare) + len(labelled) > 256:
        raise ValueError(f"The case has {len(bare) + len(labelled)} kinds of voxels; a code holds 256.")
    code_of_tissue = np.zeros(256, np.uint8)
    code_of_tissue[bare] = np.arange(len(bare))
    codes = code_of_tissue[tissue]
    codes[~unlabelled] = inverse + len(bare)
    tissue_of, rank_of = np.divmod(labelled, max(1, len(combinations)))
    labels_of_code = np.concatenate([np.zeros(len(bare), np.uint64), combinations[rank_of].astype(np.uint64)])
    centers, center_channel = _draw_centers(codes, labels_of_code, rng)
    tissues = np.concatenate([bare, tissue_of]).astype(np.uint8)
    return Case(codes, tissues, labels_of_code, centers, center_channel, supervised, hu)


def write_case(folder: Path, key: CaseKey, case: Case, *, source: Mapping[str, Any]) -> None:
    """Writes a case; its meta file comes last and in one step, so a case that has one is complete.

    `source` is JSON-ready. A scan, whose key is a name, must have HU, a phantom none.
    """
    assert isinstance(key, str) == (case.hu is not None)
    np.save(_codes_path(folder, key), case.codes)
    if case.hu is not None:
        np.save(_hu_path(folder, key), case.hu)
    meta = _meta_path(folder, key)
    part = meta.with_name(f".{meta.name}")
    np.savez(
        part,
        tissues=case.tissues,
        labels=case.labels,
        centers=case.centers,
        center_channel=case.center_channel,
        supervised=np.uint64(case.supervised),
        source=json.dumps(source),
    )
    part.replace(meta)


def _stem(key: CaseKey) -> str:
    return key if isinstance(key, str) else f"{key:06d}"


def _codes_path(folder: Path, key: CaseKey) -> Path:
    return folder / f"{_stem(key)}.codes.npy"


def _hu_path(folder: Path, key: CaseKey) -> Path:
    return folder / f"{_stem(key)}.hu.npy"


def _meta_path(folder: Path, key: CaseKey) -> Path:
    return folder / f"{_stem(key)}{_META}"


def _write_phantom(folder: Path, seed: int, spacing_mm: float) -> None:
    raster = rasterize(sample_anatomy(seed), *trunk_grid(spacing_mm))
    case = encode_case(raster.tissue, raster.labels, np.random.default_rng((seed, 77)))
    write_case(folder, seed, case, source={"phantom": seed, "spacing_mm": spacing_mm})


def _draw_centers(
    codes: NDArray[np.uint8], labels: NDArray[np.uint64], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    voxels_of = {code: np.flatnonzero(codes == code) for code in np.flatnonzero(labels)}
    centers, channel_of = [], []
    for channel in range(MOST_LABELS):
        with_label = np.flatnonzero(labels >> np.uint64(channel) & np.uint64(1))
        voxels = np.concatenate([np.empty(0, np.int64), *(voxels_of[code] for code in with_label)])
        if len(voxels):
            drawn = rng.choice(voxels, size=min(CENTERS_PER_LABEL, len(voxels)), replace=False)
            centers.append(np.stack(np.unravel_index(drawn, codes.shape), axis=1).astype(np.int16))
            channel_of.append(np.full(len(drawn), channel, np.uint8))
    if not centers:
        return np.empty((0, 3), np.int16), np.empty(0, np.uint8)
    return np.concatenate(centers), np.concatenate(channel_of)
