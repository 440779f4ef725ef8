"""A folder of label maps that training crops from: one case, one memory-mapped array of codes.

A voxel's code stands for a pair (tissue, labels); a case has far fewer than 256 of them, so a whole trunk at 2 mm is
8 MB and a crop touches little disk. HU are rendered anew for every crop: each visit shows another scan of the patient.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from training.labels import LABELS
from training.phantom.anatomy import rasterize, sample_anatomy

CENTERS_PER_LABEL = 256


@dataclass(frozen=True)
class Case:
    """One label map.

    `codes` uint8 (X,Y,Z), RAS; `tissues` uint8 (K,) and `labels` uint32 (K,) give each code its meaning (bit c is
    channel c); `centers` int16 (N,3) are voxels to crop around, `center_channel` uint8 (N,) the label of each;
    `supervised` uint32 says which labels were annotated.
    """

    codes: NDArray[np.uint8]
    tissues: NDArray[np.uint8]
    labels: NDArray[np.uint32]
    centers: NDArray[np.int16]
    center_channel: NDArray[np.uint8]
    supervised: int


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
    with _painters(processes) as pool:
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
    with _painters(processes) as pool:
        for seed in missing:
            pool.submit(_write_phantom, folder, seed, spacing_mm)
        try:
            yield
        finally:
            pool.shutdown(cancel_futures=True)


def _painters(processes: int | None) -> ProcessPoolExecutor:
    """Fresh processes: one full of the threads of a training is no place to fork from."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def has_case(folder: Path, seed: int) -> bool:
    """Whether the case is there, and complete."""
    return _meta_path(folder, seed).exists()


def open_case(folder: Path, seed: int) -> Case:
    """The case of a seed, its codes mapped from disk. Raises FileNotFoundError."""
    with np.load(_meta_path(folder, seed)) as meta:
        return Case(
            codes=np.load(_codes_path(folder, seed), mmap_mode="c"),
            tissues=meta["tissues"],
            labels=meta["labels"],
            centers=meta["centers"],
            center_channel=meta["center_channel"],
            supervised=int(meta["supervised"]),
        )


def encode_case(
    tissue: NDArray[np.uint8], labels: NDArray[np.uint32], rng: np.random.Generator, *, supervised: int = 0xFFFFFFFF
) -> Case:
    """The case of a tissue map and a label map (X,Y,Z). Raises ValueError for more than 256 kinds of voxels."""
    pairs = tissue.astype(np.uint64) << np.uint64(32) | labels.astype(np.uint64)
    unlabelled = labels == 0  # most voxels; sorting them all would take longer than to draw the patient
    bare = np.flatnonzero(np.bincount(tissue[unlabelled], minlength=256)).astype(np.uint64) << np.uint64(32)
    labelled, inverse = np.unique(pairs[~unlabelled], return_inverse=True)
    kinds = np.concatenate([bare, labelled])
    if len(kinds) > 256:
        raise ValueError(f"The case has {len(kinds)} kinds of voxels; a code holds 256.")
    code_of_tissue = np.zeros(256, np.uint8)
    code_of_tissue[bare >> np.uint64(32)] = np.arange(len(bare))
    codes = code_of_tissue[tissue]
    codes[~unlabelled] = inverse + len(bare)
    labels_of_code = (kinds & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    centers, center_channel = _draw_centers(codes, labels_of_code, rng)
    return Case(codes, (kinds >> np.uint64(32)).astype(np.uint8), labels_of_code, centers, center_channel, supervised)


def write_case(folder: Path, seed: int, case: Case, *, source: dict[str, float]) -> None:
    """Writes a case under a seed; its meta file comes last and in one step, so a case that has one is complete."""
    np.save(_codes_path(folder, seed), case.codes)
    meta = _meta_path(folder, seed)
    part = meta.with_name(f".{meta.name}")
    np.savez(
        part,
        tissues=case.tissues,
        labels=case.labels,
        centers=case.centers,
        center_channel=case.center_channel,
        supervised=np.uint32(case.supervised),
        source=json.dumps(source),
    )
    part.replace(meta)


def _codes_path(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.codes.npy"


def _meta_path(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.meta.npz"


def _write_phantom(folder: Path, seed: int, spacing_mm: float) -> None:
    raster = rasterize(sample_anatomy(seed), *trunk_grid(spacing_mm))
    case = encode_case(raster.tissue, raster.labels, np.random.default_rng((seed, 77)))
    write_case(folder, seed, case, source={"phantom": seed, "spacing_mm": spacing_mm})


def _draw_centers(
    codes: NDArray[np.uint8], labels: NDArray[np.uint32], rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    voxels_of = {code: np.flatnonzero(codes == code) for code in np.flatnonzero(labels)}
    centers, channel_of = [], []
    for label in LABELS:
        with_label = np.flatnonzero(labels >> np.uint32(label.channel) & np.uint32(1))
        voxels = np.concatenate([np.empty(0, np.int64), *(voxels_of[code] for code in with_label)])
        if len(voxels):
            drawn = rng.choice(voxels, size=min(CENTERS_PER_LABEL, len(voxels)), replace=False)
            centers.append(np.stack(np.unravel_index(drawn, codes.shape), axis=1).astype(np.int16))
            channel_of.append(np.full(len(drawn), label.channel, np.uint8))
    return np.concatenate(centers), np.concatenate(channel_of)
