"""Scans beside phantoms in training: their windows, their augmentation, and how often each dataset is seen."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tests.support.training import TINY_CONFIG, bits, tiny_recipe, write_box_store
from training.assembly import Assembly, Split
from training.augment import Augmentation, WindowPlan, draw_plan, plain_plan
from training.datasets.errors import NoCases
from training.datasets.harmonize import ScanSource
from training.recipe import EvenOver, Recipe
from training.rendering import Batch, Voxels, render
from training.samples import (
    Cases,
    NumberedPlans,
    rendered_by_loaders,
    rendered_on_device,
    training_batches,
    validation_batches,
)
from training.store import Case, encode_case, open_case, scan_names, write_case
from training.text import random_text_embedding
from training.train import RunFolder, train

CPU = torch.device("cpu")


def scan_case(level: int = 0, *, supervised: int = 0xFFFFFFFF) -> Case:
    """40 x 36 x 44 voxels: HU are a ramp, 10 x + y + 2 z, with a bright right kidney in a box."""
    x, y, z = np.indices((40, 36, 44))
    hu = (10 * x + y + 2 * z + level).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint32)
    labels[24:34, 10:26, 10:34] = bits("kidney_right")
    hu[labels > 0] = 700
    tissue = np.zeros(hu.shape, np.uint8)
    return encode_case(tissue, labels, np.random.default_rng(0), supervised=supervised, hu=hu)


def rendered(plan: WindowPlan, case: Case, stride: int = 2) -> Batch:
    return render(default_collate([plan]), [Voxels.of(case)], TINY_CONFIG, stride=stride)


def hu_of(image: torch.Tensor) -> np.ndarray:
    return image[0, 0].numpy() * 1000.0


def test_a_scan_as_it_lies_has_its_own_hu(tmp_path: Path) -> None:
    case = scan_case()
    write_case(tmp_path, "own-1", case, source={})
    assert scan_names(tmp_path) == ["own-1"]
    again = open_case(tmp_path, "own-1")
    image, occupancy, _ = rendered(plain_plan(again, TINY_CONFIG, (48, 48, 48), np.random.default_rng(0)), again)
    np.testing.assert_allclose(hu_of(image)[:40, :36, :44], np.clip(case.hu, -1000, 1000), atol=0.1)
    assert (hu_of(image)[40:] == -1000).all()
    truth = case.labels[case.codes] == bits("kidney_right")
    np.testing.assert_array_equal(occupancy[0, 1, :20, :18, :22].numpy() == 8, truth[::2, ::2, ::2])


def test_between_voxels_hu_are_interpolated_and_labels_are_not() -> None:
    case = scan_case()
    plan = plain_plan(case, TINY_CONFIG, (16, 16, 16), np.random.default_rng(0))
    moved = plan._replace(center=plan.center + torch.tensor([0.25, 0.5, 0.0]))
    image = hu_of(rendered(moved, case)[0])
    x, y, z = np.indices((16, 16, 16))
    np.testing.assert_allclose(image, 10 * (x + 0.25) + (y + 0.5) + 2 * z, atol=0.1)


def test_a_window_beyond_the_scan_is_air() -> None:
    case = scan_case()
    plan = plain_plan(case, TINY_CONFIG, (16, 16, 16), np.random.default_rng(0))
    image, occupancy, _ = rendered(plan._replace(center=plan.center + 500.0), case)
    assert (hu_of(image) == -1000).all()
    assert not occupancy.any()


def test_occupancy_at_stride_1_is_that_at_stride_2_in_full() -> None:
    case = scan_case()
    plan = draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(3))
    fine, coarse = (rendered(plan, case, stride)[1] for stride in (1, 2))
    assert fine.shape == (1, 32, 32, 32, 32)
    assert set(fine.unique().tolist()) <= {0, 8}
    pooled = torch.nn.functional.avg_pool3d(fine.float(), 2)
    torch.testing.assert_close(pooled, coarse.float())


@pytest.mark.parametrize("augmentation", Augmentation)
def test_image_and_labels_move_together(augmentation: Augmentation) -> None:
    """Wherever the window lies, the kidney is bright and nothing else is: HU of 700 against at most 520."""
    case = scan_case()
    seen = 0
    for number in range(12):
        plan = draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(number), augmentation=augmentation)
        plan = plan._replace(
            gain=torch.tensor(1.0), offset_hu=torch.tensor(0.0), noise_hu=torch.tensor(0.0),
            along_x=torch.eye(32), along_y=torch.eye(32), along_z=torch.eye(32),
        )  # fmt: skip
        image, occupancy, _ = rendered(plan, case, stride=1)
        kidney = occupancy[0, 1] == 8
        bright = torch.from_numpy(hu_of(image) > 610)
        seen += int(kidney.sum())
        assert (kidney & bright).sum() >= 0.85 * max(int(kidney.sum()), int(bright.sum()))
    assert seen > 10_000


def test_the_papers_augmentation_turns_by_quarters_and_shifts() -> None:
    case = scan_case()
    plans = [
        draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(n), augmentation=Augmentation.PAPER) for n in range(400)
    ]
    turned = [plan for plan in plans if not torch.equal(plan.matrix, torch.eye(3, dtype=torch.float32))]
    shifted = [float(plan.offset_hu) for plan in plans if plan.offset_hu != 0]
    assert 20 < len(turned) < 65
    assert 50 < len(shifted) < 115
    assert max(map(abs, shifted)) <= 200  # a tenth of the range
    assert all(torch.linalg.det(plan.matrix) == pytest.approx(1.0) for plan in turned)  # no mirror image
    assert all(plan.matrix[2, 2] == 1 for plan in turned)


def test_a_scan_that_shows_nothing_annotated_is_seen_anywhere() -> None:
    tissue = np.zeros((40, 36, 44), np.uint8)
    case = encode_case(
        tissue, np.zeros(tissue.shape, np.uint32), np.random.default_rng(0), hu=np.zeros(tissue.shape, np.int16)
    )
    assert case.centers.shape == (0, 3)
    draw_plan(case, TINY_CONFIG, 32, np.random.default_rng(0))


def write_assembly(store: Path, cases: dict[str, int], split: Split = Split.TRAIN) -> Assembly:
    """So many scans of each dataset; their HU tell the dataset."""
    store.mkdir(parents=True, exist_ok=True)
    scans = {}
    for level, (dataset, count) in enumerate(cases.items()):
        for n in range(count):
            name = f"{dataset}-{n}"
            write_case(store, name, scan_case(level, supervised=int(bits("kidney_right"))), source={})
            scans[name] = ScanSource(dataset, str(n), name, name, "train", {}, (1, 1, 1), (1.0, 1.0, 1.0))
    return Assembly(store, scans, dict.fromkeys(scans, split))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    settings = tiny_recipe(scans=0.75)
    write_box_store(tmp_path / "phantoms", settings)
    return settings


def test_datasets_are_seen_alike_whatever_their_size(recipe: Recipe, tmp_path: Path) -> None:
    assembly = write_assembly(tmp_path / "store", {"large": 9, "small": 1})
    plans = NumberedPlans(Cases.to_train_on(tmp_path / "phantoms", recipe, assembly), recipe)
    keys = [plans._draw_key(n, np.random.default_rng(n)) for n in range(2000)]
    seen = Counter("phantom" if isinstance(key, int) else key.split("-")[0] for key in keys)
    assert seen["phantom"] == pytest.approx(500, abs=70)
    assert seen["large"] == pytest.approx(750, abs=80)
    assert seen["small"] == pytest.approx(750, abs=80)


def test_evenly_over_labels_a_dataset_is_seen_by_what_it_alone_annotates(recipe: Recipe, tmp_path: Path) -> None:
    """Spleen and liver each in half of the windows; the liver's are shared by both datasets that annotate it."""
    assembly = write_assembly(tmp_path / "store", {"both": 2, "liver": 5})
    annotates = {"both-0": ("spleen",), "both-1": ("spleen", "liver")} | {f"liver-{n}": ("liver",) for n in range(5)}
    scans = {name: replace(source, supervised=annotates[name]) for name, source in assembly.scans.items()}
    evenly = recipe.model_copy(update={"scans": 1.0, "even_over": EvenOver.LABELS})
    cases = Cases.to_train_on(tmp_path / "phantoms", evenly, Assembly(assembly.store, scans, assembly.splits))
    plans = NumberedPlans(cases, evenly)
    seen = Counter(plans._draw_key(n, np.random.default_rng(n)) for n in range(2000))
    assert seen["both-0"] == pytest.approx(500, abs=70)  # half of the spleen's
    assert seen["both-1"] == pytest.approx(1000, abs=90)  # the other half, and its dataset's share of the liver's
    assert sum(seen[f"liver-{n}"] for n in range(5)) == pytest.approx(500, abs=70)


def test_scans_without_any_annotation_are_none_to_spread_labels_over(recipe: Recipe, tmp_path: Path) -> None:
    assembly = write_assembly(tmp_path / "store", {"own": 1})  # their origin names no label
    evenly = recipe.model_copy(update={"even_over": EvenOver.LABELS})
    with pytest.raises(NoCases, match="no scans for train"):
        NumberedPlans(Cases.to_train_on(tmp_path / "phantoms", evenly, assembly), evenly)


def test_batches_mix_scans_and_phantoms_and_mask_the_labels_of_each(recipe: Recipe, tmp_path: Path) -> None:
    assembly = write_assembly(tmp_path / "store", {"own": 2})
    batches = list(training_batches(tmp_path / "phantoms", recipe, 0, CPU, scans=assembly))
    supervised = torch.cat([batch[2] for batch in batches])
    of_scans = supervised.sum(dim=1) == 1
    assert 0 < of_scans.sum() < len(supervised)
    assert supervised[of_scans, 1].all()
    assert supervised[~of_scans].all()
    again = list(training_batches(tmp_path / "phantoms", recipe, 3, CPU, scans=assembly))
    assert all(
        torch.equal(a, b)
        for one, other in zip(batches[3:], again, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_windows_rendered_on_the_device_are_those_that_loaders_render(recipe: Recipe, tmp_path: Path) -> None:
    """Of scans and phantoms, also where the device has room for one case at a time."""
    assembly = write_assembly(tmp_path / "store", {"own": 2, "other": 1})
    plans = NumberedPlans(Cases.to_train_on(tmp_path / "phantoms", recipe, assembly), recipe)
    by_loaders = rendered_by_loaders(plans, range(12), 3, 0, CPU)
    on_device = rendered_on_device(plans, range(12), 3, 0, CPU, most_bytes=1)
    assert {plans.draw(number)[1].hu is None for number in range(12)} == {True, False}
    for one, other in zip(by_loaders, on_device, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_a_recipe_that_shows_scans_needs_some(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(NoCases, match="shows scans; give the store"):
        list(training_batches(tmp_path / "phantoms", recipe, 0, CPU))
    only_training = write_assembly(tmp_path / "store", {"own": 1})
    nothing_else = recipe.model_copy(update={"scans": 1.0})
    with pytest.raises(NoCases, match="no scans for validation"):
        list(validation_batches(tmp_path / "phantoms", nothing_else, CPU, scans=only_training))


def test_a_recipe_of_scans_alone_without_any_to_validate_on_is_refused_before_it_begins(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_training = write_assembly(tmp_path / "store", {"own": 1})
    monkeypatch.setattr("training.train.open_assembly", lambda _store: only_training)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(NoCases, match="no scans for validation"):
        train(recipe.model_copy(update={"scans": 1.0}), *random_text_embedding(0), run, scans=only_training.store)
    assert not run.path.exists()


def test_validation_shows_phantoms_alone_where_the_split_got_no_scan(recipe: Recipe, tmp_path: Path) -> None:
    only_training = write_assembly(tmp_path / "store", {"own": 1})
    shown = list(validation_batches(tmp_path / "phantoms", recipe, CPU, scans=only_training))
    assert len(shown) == recipe.validation_samples
    assert all(supervised.all() for _, _, supervised in shown)
