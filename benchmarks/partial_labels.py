"""What partial labels cost: one model trained on five partially labelled datasets, on full labels, and without masking.

    python -m benchmarks.partial_labels [--scans 16] [--unseen 12] [--steps N] [--even-over labels] [--out FOLDER]

Phantoms on a grid of 6 mm are cut into LiTS, KiTS21, MSD spleen, CT-ORG and CHAOS, each of its own patients, in the
layouts, names and values that they are downloaded in. The same files are harmonized into three stores: with each
dataset's own labels; with every label that any of the five annotates; and with each dataset's own labels taken for
complete, so that what it does not annotate is background. One recipe trains a model on each, on the same images in the
same splits: same seed, steps, number of windows and network. All three segment the same phantoms that nobody has
trained on. Every step is a command of docs/training.md. With `--out` the files stay, and an interrupted run goes on.
"""

import argparse
import csv
import io
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.support.assembly import WRITERS, mask_of, save, small_phantom
from training import cli
from training.datasets.description import DatasetDescription, read_description
from training.datasets.layout import find_cases
from training.evaluate import FIRST_TEST_SEED
from training.labels import LABELS, LESIONS
from training.phantom.phantom import Phantom
from training.pools import process_pool
from training.recipe import EvenOver

RECIPE = """
name = "partial_labels"
seed = 1
steps = {steps}
batch_size = 2
patch = 48
learning_rate = 4e-3
weight_decay = 1e-4
warmup_steps = 50
gradient_clip = 2.0
ema_decay = 0.99
head_learning_rate_factor = 0.25
organ_rarity_exponent = 0.5
deep_supervision = 1.0
head_leak = 0.1
lesion_windows = 0.0
label_windows = 0.7
loss_plane_stride = 3
mixed_precision = false
scans = 1.0
even_over = "{even_over}"
phantoms = 0
validation_phantoms = 0
validation_samples = 0
validate_every = 100000
save_every = 500
loader_processes = 1

[model]
channels = [16, 24, 32, 48]
spacing_mm = [6.0, 6.0, 6.0]
roi_size = [48, 48, 48]
foreground_above_hu = -300.0
overlap = 0.5
"""

ARMS = ("full", "partial", "background")
#: What any of the five annotates, as masks: the structure's file, and what holds in it.
UNION = {
    "spleen": ("spleen",),
    "kidney_right": ("kidney_right",),
    "kidney_left": ("kidney_left",),
    "liver": ("liver",),
    "lung_right": ("lung_right",),
    "lung_left": ("lung_left",),
    "urinary_bladder": ("urinary_bladder",),
    "kidney_tumor": ("kidney_tumor",),
    "liver_tumor": ("liver_tumor", "hepatic_vessel_tumor"),  # LiTS does not tell them apart
    "kidney_cyst": ("kidney_cyst",),
}
LESION_NAMES = tuple(label.name for label in LESIONS)
SEEDS_APART = 1000  # between the patients of two datasets

Scores = dict[str, float]


def main() -> None:
    """Dice of each label for the three models, their means, and what share of full labels' partial labels reach."""
    parser = argparse.ArgumentParser(description="What partial labels cost.")
    parser.add_argument("--scans", type=int, default=16, help="of each dataset, a quarter of which is not trained on")
    parser.add_argument("--unseen", type=int, default=12, help="phantoms to evaluate on")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--even-over", type=EvenOver, choices=list(EvenOver), default=EvenOver.LABELS)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # the recipe's loader has another core
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(steps=chosen.steps, even_over=chosen.even_over))
        if not (folder / "unseen").exists():
            seeds = {name: range(n * SEEDS_APART, n * SEEDS_APART + chosen.scans) for n, name in enumerate(WRITERS, 1)}
            unseen = range(FIRST_TEST_SEED, FIRST_TEST_SEED + chosen.unseen)
            shutil.rmtree(folder / "downloads", ignore_errors=True)  # of a run that was interrupted
            write_datasets(folder, seeds, unseen, draw([*unseen, *chain.from_iterable(seeds.values())]))
        harmonize_arms(folder, recipe)
        scores = {arm: train_and_evaluate(folder, recipe, arm) for arm in ARMS}
    print_table(scores)


def draw(seeds: Sequence[int]) -> dict[int, Phantom]:
    """The phantoms of the seeds, drawn on all cores."""
    with process_pool(None) as pool:
        return dict(zip(seeds, pool.map(small_phantom, seeds), strict=True))


def write_datasets(
    folder: Path, seeds: Mapping[str, Sequence[int]], unseen: Sequence[int], phantoms: Mapping[int, Phantom]
) -> None:
    """Writes `folder`/downloads/<dataset> with the phantoms of its seeds, and `folder`/unseen.

    Beside the labels of a dataset lie all labels of its patients, one file per structure: all/<case>/.
    """
    for name, write in WRITERS.items():
        download = write(folder / "downloads" / name, seeds[name], phantoms.__getitem__)
        for files, seed in zip(find_cases(download, read_description(name)), seeds[name], strict=True):
            write_masks(phantoms[seed], download / "all" / files.case)
    for seed in unseen:
        save(phantoms[seed].hu, phantoms[seed].affine, folder / "drawn" / f"{seed}.nii.gz")
        write_masks(phantoms[seed], folder / "drawn" / "all" / str(seed))
    (folder / "drawn").rename(folder / "unseen")  # last: where it is, all is


def write_masks(phantom: Phantom, folder: Path) -> None:
    """One file for each structure of the union."""
    for structure, names in UNION.items():
        save(mask_of(phantom.labels, *names).astype(np.uint8), phantom.affine, folder / f"{structure}.nii.gz")


def descriptions(dataset: str) -> dict[str, DatasetDescription]:
    """How a dataset is described for each model: in the registry; with all labels; and as if its own were all."""
    own = read_description(dataset)
    return {
        "partial": own,
        "full": described_in_full(own.name, own.title, own.image),
        "background": own.model_copy(update={"supervised": tuple(UNION)}),
    }


def described_in_full(name: str, title: str, image: str) -> DatasetDescription:
    """A dataset with one mask file for each structure of the union."""
    structures: dict[str, tuple[str, ...]] = {structure: (structure,) for structure in UNION}
    structures["liver_tumor"] = ("liver", "liver_tumor")
    label = "all/{case}/{structure}.nii.gz"
    return DatasetDescription(name=name, title=title, image=image, label=label, structures=structures)


def harmonize_arms(folder: Path, recipe: Path) -> None:
    """The stores `folder`/<arm>/store, of the same downloads."""
    for dataset in WRITERS:
        for arm, description in descriptions(dataset).items():
            described_as = dataset if arm == "partial" else write_description(description, folder / arm)
            viscera_train(
                "harmonize", folder / "downloads" / dataset, "--as", described_as, "--out", folder / arm / "store",
                "--recipe", recipe, "--processes", "1",
            )  # fmt: skip


def train_and_evaluate(folder: Path, recipe: Path, arm: str) -> Scores:
    """Mean Dice of each label over the unseen scans that show it."""
    run, out = folder / arm / "run", folder / arm / "evaluation"
    viscera_train("train", "--recipe", recipe, "--run", run, "--store", folder / arm / "store")
    unseen = write_description(described_in_full("unseen", "Phantoms never trained on", "{case}.nii.gz"), folder)
    viscera_train(
        "evaluate", "--checkpoint", run / "model.pt", "--dataset", folder / "unseen", "--as", unseen, "--out", out,
        "--processes", "1",
    )  # fmt: skip
    found: dict[str, list[float]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO((out / "scans.csv").read_text(encoding="utf-8"))):
        if row["dice"]:
            found[row["label"]].append(float(row["dice"]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def write_description(description: DatasetDescription, folder: Path) -> Path:
    """The description as `folder`/<name>.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{description.name}.yaml"
    path.write_text(yaml.safe_dump(description.model_dump(mode="json", exclude_defaults=True)), encoding="utf-8")
    return path


def viscera_train(*arguments: str | Path) -> None:
    """Calls the command in this process; says how long it took, and keeps what it prints to itself."""
    begun = time.monotonic()
    with redirect_stdout(io.StringIO()):
        cli.app([str(argument) for argument in arguments], standalone_mode=False)
    print(f"{time.monotonic() - begun:6.0f} s  viscera-train", *arguments, flush=True)


def print_table(scores: dict[str, Scores]) -> None:
    """Labels by rows and models by columns; organs, their mean, lesions."""
    organs = [label.name for label in LABELS if label.name in UNION and label.name not in LESION_NAMES]
    lesions = [name for name in LESION_NAMES if name in scores["full"]]
    print(f"| Dice | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}")
    print("\n".join(_row(name, [scores[arm][name] for arm in ARMS]) for name in organs))
    means = {arm: float(np.mean([scores[arm][name] for name in organs])) for arm in ARMS}
    print(_row("**mean of organs**", list(means.values())))
    print("\n".join(_row(name, [scores[arm][name] for arm in ARMS]) for name in lesions))
    for arm in ARMS[1:]:
        print(f"{arm}: {means[arm] / means['full']:.1%} of the mean Dice of full labels")


def _row(name: str, values: Sequence[float]) -> str:
    return f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |"


if __name__ == "__main__":
    main()
