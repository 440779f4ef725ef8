"""Training windows per second of one core: this project's loader, and MONAI's with the reference's transforms.

    python -m benchmarks.loading [--windows N]

One phantom abdomen at 1.5 mm stands for every scan. Both give windows of 96^3 voxels with 32 labels at full resolution.
MONAI is measured with its deterministic transforms done beforehand and kept in memory, as the reference caches them,
and reading the file for every pair of windows, as it does for scans beyond its cache. Seconds are of the processor, not
of the clock: other work on the machine does not count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    RandCropByPosNegLabeld,
    RandRotate90d,
    RandShiftIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from training.assembly import Assembly, Split
from training.augment import Augmentation
from training.datasets.harmonize import ScanSource
from training.phantom.phantom import ABDOMEN, draw_phantom
from training.phantom.tissues import Tissue
from training.recipe import read_recipe
from training.samples import Cases, NumberedPlans, RenderedPlans
from training.store import encode_case, write_case

SPACING = (1.5, 1.5, 1.5)
KEYS = ["image", "label"]
WINDOWS_PER_READ = 2  # the reference's num_samples


def main() -> None:
    """One line per loader."""
    parser = argparse.ArgumentParser(description="Training windows per second.")
    parser.add_argument("--windows", type=int, default=24)
    windows = parser.parse_args().windows
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        image, label, plans = prepare(Path(folder))
        results = {f"this project, {augmentation}": ours(plans, augmentation) for augmentation in Augmentation}
        results |= {"MONAI, cached": monai_cached(image, label), "MONAI, from disk": monai_from_disk(image, label)}
        for name, window in results.items():
            print(f"{name:24s} {per_second(window, windows):6.2f} windows per second of one core")


def prepare(folder: Path) -> tuple[Path, Path, NumberedPlans]:
    """The phantom as files for MONAI and as a store."""
    phantom = draw_phantom(5, spacing_mm=SPACING, field_of_view=ABDOMEN)
    image, label = folder / "image.nii.gz", folder / "label.nii.gz"
    channels = np.stack([(phantom.labels >> np.uint32(c) & 1).astype(np.uint8) for c in range(32)], axis=3)
    nibabel.save(nibabel.Nifti1Image(phantom.hu, phantom.affine), image)
    nibabel.save(nibabel.Nifti1Image(channels, phantom.affine), label)
    tissue = np.full(phantom.hu.shape, Tissue.AIR, np.uint8)
    case = encode_case(tissue, phantom.labels, np.random.default_rng(0), hu=phantom.hu)
    write_case(folder, "phantom-5", case, source={})
    scans = {"phantom-5": ScanSource("phantom", "5", "5", "5", "train", {}, phantom.hu.shape, SPACING)}
    recipe = read_recipe("paper_swin_unetr")
    return (
        image,
        label,
        NumberedPlans(Cases(folder, range(0), Assembly(folder, scans, {"phantom-5": Split.TRAIN})), recipe),
    )


def ours(plans: NumberedPlans, augmentation: Augmentation) -> Callable[[int], int]:
    """One window at a call."""
    recipe = plans.recipe.model_copy(update={"augmentation": augmentation})
    rendered = RenderedPlans(NumberedPlans(plans.cases, recipe))
    return lambda number: len(rendered[number][0])


def monai_cached(image: Path, label: Path) -> Callable[[int], int]:
    """The random transforms alone."""
    data = CacheDataset([{"image": str(image), "label": str(label)}], Compose([*fixed(), *random()]), progress=False)
    return lambda _: len(data[0])


def monai_from_disk(image: Path, label: Path) -> Callable[[int], int]:
    """All transforms."""
    data = Dataset([{"image": str(image), "label": str(label)}], Compose([*fixed(), *random()]))
    return lambda _: len(data[0])


def fixed() -> list[object]:
    """The reference's deterministic transforms, in its order."""
    return [
        LoadImaged(KEYS),
        EnsureChannelFirstd("image", channel_dim="no_channel"),
        EnsureChannelFirstd("label", channel_dim=-1),
        Orientationd(KEYS, axcodes="RAS"),
        Spacingd(KEYS, pixdim=SPACING, mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True),
        CropForegroundd(KEYS, source_key="image", select_fn=lambda values: values > 0),
        SpatialPadd(KEYS, spatial_size=(96, 96, 96), mode="constant"),
    ]


def random() -> list[object]:
    """The reference's random transforms: twice as many windows around labels as elsewhere."""
    crop = RandCropByPosNegLabeld(
        KEYS, "label", (96, 96, 96), pos=2, neg=1, num_samples=WINDOWS_PER_READ, image_key="image", image_threshold=0
    )
    return [crop, RandRotate90d(KEYS, prob=0.1, max_k=3), RandShiftIntensityd("image", offsets=0.1, prob=0.2)]


def per_second(window: Callable[[int], int], windows: int) -> float:
    """Windows per second of the processor, the first call left out: it opens files."""
    window(0)
    start, made, number = time.process_time(), 0, 1
    while made < windows:
        made += window(number)
        number += 1
    return made / (time.process_time() - start)


if __name__ == "__main__":
    main()
