"""A network started from a bundle computes what the bundle's network did."""

import copy
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from model_export.head import fold_head, write_head
from model_export.onnx import export_backbone
from tests.support.training import TINY_CONFIG, tiny_model, tiny_recipe, write_box_store
from training.checkpoint import load_checkpoint, save_checkpoint
from training.networks.compact import ResidualBlock
from training.networks.universal import UniversalModel
from training.text import random_text_embedding
from training.train import RunFolder, train
from training.warm_start import (
    WarmStartError,
    open_bundle,
    renew_heads,
    settle_norms,
    start_from_bundle,
    start_from_checkpoint,
)


@pytest.fixture(scope="module")
def source() -> UniversalModel:
    """A network with all its norms away from their initial values."""
    model = tiny_model(5)
    for norm in (model.gap[0], model.feature_head[0]):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, 0.0, 0.2)
    return model


@pytest.fixture(scope="module")
def bundle(source: UniversalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny-1.0.0"
    folder.mkdir()
    export_backbone(source, folder / "backbone.onnx")
    write_head(fold_head(source), folder / "head.safetensors")
    (folder / "manifest.json").write_text("{}")  # a run notes its hash
    return folder


@pytest.fixture(scope="module")
def window() -> torch.Tensor:
    return torch.rand(2, 1, 48, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def fresh(seed: int = 9) -> UniversalModel:
    """Other weights and other text features than the source's."""
    torch.manual_seed(seed)
    return UniversalModel(TINY_CONFIG, random_text_embedding(seed)[0]).eval()


@torch.no_grad()
def test_logits_are_those_of_the_bundle(source: UniversalModel, bundle: Path, window: torch.Tensor) -> None:
    model = fresh()
    expected = source(window)
    assert not torch.allclose(model(window), expected, atol=1e-2)
    start_from_bundle(model, bundle)
    torch.testing.assert_close(model(window), expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_logit_scale_multiplies_them(source: UniversalModel, bundle: Path, window: torch.Tensor) -> None:
    model = fresh()
    start_from_bundle(model, bundle, logit_scale=0.25)
    torch.testing.assert_close(model(window), source(window) / 4, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_settled_norms_change_nothing_in_eval_mode_and_little_in_training(
    source: UniversalModel, bundle: Path, window: torch.Tensor
) -> None:
    model = fresh()
    start_from_bundle(model, bundle)
    expected = source(window)
    unsettled = (copy.deepcopy(model).train()(window) - expected).abs().max()
    settle_norms(model, window)
    torch.testing.assert_close(model(window), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(model.train()(window), expected, atol=2e-4, rtol=1e-4)
    assert unsettled > 0.01  # or the test could not fail


def test_another_network_is_refused(bundle: Path) -> None:
    torch.manual_seed(0)
    wider = UniversalModel(TINY_CONFIG.model_copy(update={"channels": (16, 16, 32, 32)}), random_text_embedding(0)[0])
    with pytest.raises(WarmStartError, match=r"tiny-1\.0\.0 have other shapes than the recipe's network"):
        start_from_bundle(wider, bundle)
    unet = UniversalModel(
        TINY_CONFIG.model_copy(update={"architecture": "unet", "feature_size": 16}), wider.text_embedding
    )
    with pytest.raises(WarmStartError, match="has no weights for backbone"):
        start_from_bundle(unet, bundle)


@torch.no_grad()
def test_residual_blocks_that_the_bundle_lacks_start_as_the_identity(
    source: UniversalModel, bundle: Path, window: torch.Tensor
) -> None:
    deeper = fresh()
    channels = TINY_CONFIG.channels
    assert channels is not None
    deeper.backbone.encoder2 = torch.nn.Sequential(*deeper.backbone.encoder2, ResidualBlock(channels[2])).eval()
    unchanged = deeper.backbone.encoder2[2].first[0].weight.clone()
    start_from_bundle(deeper, bundle)
    torch.testing.assert_close(deeper(window), source(window), atol=2e-4, rtol=1e-4)
    assert torch.equal(deeper.backbone.encoder2[2].first[0].weight, unchanged)  # random, so that it can learn


def test_a_block_of_which_the_bundle_has_a_part_is_not_the_identity(bundle: Path) -> None:
    graph = onnx.load(bundle / "backbone.onnx")
    renamed = next(t for t in graph.graph.initializer if "encoder1.1.first.0.weight" in t.name)
    partial = bundle.parent / "partial-1.0.0"
    partial.mkdir(exist_ok=True)
    for node in graph.graph.node:
        node.input[:] = ["elsewhere" if name == renamed.name else name for name in node.input]
    renamed.name = "elsewhere"
    onnx.save(graph, partial / "backbone.onnx")
    shutil.copy(bundle / "head.safetensors", partial)
    with pytest.raises(WarmStartError, match=r"has no weights for backbone\.encoder1\.1\.first\.0\.weight"):
        start_from_bundle(fresh(), partial)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WarmStartError, match="is not a readable bundle"):
        start_from_bundle(fresh(), tmp_path)


def test_labels_alike_in_text_cannot_have_different_heads(bundle: Path) -> None:
    model = UniversalModel(TINY_CONFIG, torch.ones(32, 512))
    with pytest.raises(WarmStartError, match="do not tell the labels apart"):
        start_from_bundle(model, bundle)


def test_a_run_starts_from_a_bundle(bundle: Path, tmp_path: Path) -> None:
    """At a learning rate of next to nothing the final weights compute what the bundle did, and the record says so."""
    recipe = tiny_recipe(steps=1, warmup_steps=0, learning_rate=1e-12, weight_decay=0.0, ema_decay=0.0)
    run = RunFolder(tmp_path)
    write_box_store(run.store, recipe)
    started = load_checkpoint(train(recipe, *random_text_embedding(0), run, start_from=bundle))
    assert started.training["started from"] == "the bundle tiny-1.0.0"
    rows = fold_head(started.model).K
    torch.testing.assert_close(torch.from_numpy(rows), torch.from_numpy(fold_head(tiny_model(5)).K), atol=1e-4, rtol=0)


def test_a_run_starts_from_a_checkpoint(tmp_path: Path) -> None:
    source = tiny_model(5)
    recipe = tiny_recipe(steps=1, warmup_steps=0, learning_rate=1e-12, weight_decay=0.0, ema_decay=0.0)
    start = tmp_path / "start.pt"
    embedding, text = random_text_embedding(5)
    save_checkpoint(start, source, label_names=(), text=text, training={"recipe": "first"})
    run = RunFolder(tmp_path / "run")
    write_box_store(run.store, recipe)
    started = load_checkpoint(train(recipe, embedding, text, run, start_from=start))
    assert started.training["started from"] == "the checkpoint of the recipe first"
    assert torch.allclose(started.model.controller.weight, source.controller.weight, atol=1e-6)


def test_a_checkpoint_of_other_text_features_is_refused(tmp_path: Path) -> None:
    start = tmp_path / "start.pt"
    save_checkpoint(start, tiny_model(5), label_names=(), text=random_text_embedding(5)[1], training={})
    with pytest.raises(WarmStartError, match="other text features"):
        start_from_checkpoint(fresh(), start)


def test_a_renewed_head_starts_as_a_new_one_and_the_others_stay() -> None:
    model = tiny_model(5)
    window = torch.rand(2, 1, 32, 32, 32) * 2 - 1
    before = model.text_rows().detach()
    torch.manual_seed(0)
    renew_heads(model, [26, 31], window)
    after = model.text_rows().detach()
    others = [c for c in range(32) if c not in (26, 31)]
    torch.testing.assert_close(after[others], before[others], atol=1e-4, rtol=0)
    with torch.no_grad():
        mean_head = model.head_params(model.backbone_outputs(window)[1]).mean(0)[[26, 31]]
    assert mean_head[:, -1].tolist() == pytest.approx([-3.0, -3.0], abs=1e-3)  # as likely as a rare label is
    assert mean_head[:, 136:152].abs().max() < 1e-3  # biases
    assert mean_head[:, :136].std() == pytest.approx(0.5, abs=0.08)


@torch.no_grad()
def test_a_bundle_opens_as_a_checkpoint(
    source: UniversalModel, bundle: Path, window: torch.Tensor, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(bundle, tmp_path / "tiny-1.0.0"))
    (whole / "manifest.json").write_text(
        '{"training": {"recipe": "first", "checkpoint_sha256": "of another file"}, "labels": [{"name": "spleen"}]}'
    )
    opened = open_bundle(whole, TINY_CONFIG, *random_text_embedding(0))
    assert (opened.label_names, opened.training) == (("spleen",), {"recipe": "first"})
    torch.testing.assert_close(opened.model(window), source(window), atol=2e-4, rtol=1e-4)
