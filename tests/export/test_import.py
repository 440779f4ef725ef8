"""Published weights become a bundle; anything that is nearly published weights is refused, by name."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, ScaleIntensityRanged, Spacingd
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner, Result

from model_export import windows as windows_module
from model_export.cli import app
from model_export.errors import (
    CheckpointRefused,
    CheckpointUnreadable,
    CheckpointUnsafe,
    KeysMismatch,
    NetworkUnknown,
)
from model_export.head import fold_head
from model_export.importing import import_checkpoint
from model_export.sample import SAMPLE_SIZE, trunk_window
from service.inference import load_bundle
from service.pipeline import segment_study
from service.request import PostProcessing, SegmentationRequest
from tests.support.networks import narrow_model, settle_norms
from training.checkpoint import Checkpoint
from training.config import ModelConfig
from training.detection import dice
from training.labels import LABELS
from training.networks.universal import UniversalModel, count_parameters
from training.phantom.phantom import FieldOfView, draw_phantom
from training.phantom.write import write_ct
from training.text import PUBLISHED_TEMPLATE, embedding_sha256

State = dict[str, Tensor]

architectures = pytest.mark.parametrize("architecture", ["unet", "swin_unetr", "unetpp", "dints"])


def publish(model: UniversalModel, *, module: bool = True, backbone: bool = True) -> State:
    """The model's weights as the reference would have saved them, written out here a second time."""
    state: State = {}
    for key, tensor in model.state_dict().items():
        name = key.replace("gap.", "GAP.").replace("feature_head.", "precls_conv.")
        if key == "text_embedding":
            name = "organ_embedding" if tensor.shape[1] == 512 else "organ_embedding.weight"
        if key == "controller.weight":
            tensor = tensor[:, :, None, None, None]
        if not backbone:
            name = name.removeprefix("backbone.")
        state["module." * module + name] = tensor
        if key.endswith("bn1.bias"):
            norm = "module." * module + name.removesuffix("bias")
            state[norm + "running_mean"] = torch.full_like(tensor, 7.0)
            state[norm + "running_var"] = torch.full_like(tensor, 9.0)
            state[norm + "num_batches_tracked"] = torch.tensor(123)
    return state


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def unet() -> UniversalModel:
    return narrow_model("unet")


def assert_same_weights(imported: Checkpoint, model: UniversalModel) -> None:
    expected = model.state_dict()
    state = imported.model.state_dict()
    assert state.keys() == expected.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, expected[key]), key
    assert not imported.model.training


@pytest.mark.parametrize("module", [True, False])
@pytest.mark.parametrize("backbone", [True, False])
@pytest.mark.parametrize("wrap", [
    lambda state: {"net": state, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 4}, "epoch": 1050},
    lambda state: {"state_dict": state},
    lambda state: state,
], ids=["net", "state_dict", "bare"])  # fmt: skip
def test_every_layout_is_read(
    unet: UniversalModel, tmp_path: Path, wrap: Callable[[State], dict[str, Any]], module: bool, backbone: bool
) -> None:
    path = save(tmp_path / "published.pth", wrap(publish(unet, module=module, backbone=backbone)))
    imported = import_checkpoint(path)
    assert_same_weights(imported.checkpoint, unet)
    assert imported.licence == "CC-BY-NC-ND-4.0"


@architectures
def test_backbone_and_its_width_are_recognised(architecture: str, tmp_path: Path) -> None:
    model = narrow_model(architecture)
    checkpoint = import_checkpoint(save(tmp_path / "published.pth", {"net": publish(model)})).checkpoint
    assert_same_weights(checkpoint, model)
    assert checkpoint.config == ModelConfig(
        architecture=architecture, feature_size=model.config.feature_size, patch_merging="duplicated",
        spacing_mm=(1.5, 1.5, 1.5), intensity_range_hu=(-175.0, 250.0), output_range=(0.0, 1.0), interpolation="linear",
        foreground_above_hu=-175.0, roi_size=(96, 96, 96), overlap=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "entries", "parameters"),
    [
        ("unet", 117, 19_416_417),
        ("swin_unetr", 170, 62_595_315),
        ("unetpp", 153, 7_256_161),
        ("dints", 510, 152_675_713),
    ],
)
def test_published_sizes_fit(architecture: str, entries: int, parameters: int, tmp_path: Path) -> None:
    """Zeros of the published shapes, each one number in the file."""
    with torch.device("meta"):
        model = UniversalModel(ModelConfig(architecture=architecture), torch.zeros(32, 512))
    shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in publish(model).items()}
    zeros = {key: torch.zeros((), dtype=dtype).expand(shape) for key, (shape, dtype) in shapes.items()}
    assert len(zeros) == entries
    checkpoint = import_checkpoint(save(tmp_path / "published.pth", {"net": zeros})).checkpoint
    assert checkpoint.config.architecture == architecture
    assert count_parameters(checkpoint.model) == parameters


def test_what_the_checkpoint_says_of_itself(unet: UniversalModel, tmp_path: Path) -> None:
    path = save(tmp_path / "published.pth", {"net": publish(unet), "epoch": 1050})
    checkpoint = import_checkpoint(path).checkpoint
    assert checkpoint.label_names == tuple(label.name for label in LABELS)
    assert checkpoint.text.prompt_template == PUBLISHED_TEMPLATE
    assert checkpoint.text.sha256 == embedding_sha256(unet.text_embedding)
    assert checkpoint.training["epoch"] == 1050
    assert "14 public CT datasets" in checkpoint.training["data"]
    assert "Assumed" in checkpoint.training["data"]


def test_half_precision_text_features_become_float32(unet: UniversalModel, tmp_path: Path) -> None:
    state = publish(unet)
    state["module.organ_embedding"] = state["module.organ_embedding"].half()
    embedding = import_checkpoint(save(tmp_path / "published.pth", state)).checkpoint.model.text_embedding
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, unet.text_embedding.half().float())


def test_first_31_labels_without_the_cyst(tmp_path: Path) -> None:
    model = narrow_model("unet", labels=31)
    checkpoint = import_checkpoint(save(tmp_path / "published.pth", publish(model))).checkpoint
    assert_same_weights(checkpoint, model)
    assert len(checkpoint.label_names) == 31
    assert "kidney_cyst" not in checkpoint.label_names


def test_learned_embedding_is_folded_without_relu(tmp_path: Path) -> None:
    model = narrow_model("unet", text_channels=256)
    checkpoint = import_checkpoint(save(tmp_path / "published.pth", publish(model))).checkpoint
    assert_same_weights(checkpoint, model)
    weight, bias = model.controller.weight, model.controller.bias
    with torch.inference_mode():
        expected = model.text_embedding.double() @ weight[:, 256:].double().T + bias.double()
    torch.testing.assert_close(torch.from_numpy(fold_head(checkpoint.model).K).double(), expected, rtol=0, atol=1e-5)
    assert checkpoint.text.encoder.startswith("none")
    assert checkpoint.text.sha256 == embedding_sha256(model.text_embedding)


def test_own_checkpoints_pass_through(checkpoint_path: Path, checkpoint: Checkpoint) -> None:
    imported = import_checkpoint(checkpoint_path)
    assert_same_weights(imported.checkpoint, checkpoint.model)
    assert imported.checkpoint.sha256 == checkpoint.sha256
    assert imported.checkpoint.config == checkpoint.config
    assert imported.licence == "Apache-2.0"


def rename(old: str, new: str) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[new] = state.pop(old)

    return change


def replace(key: str, value: Tensor) -> Callable[[State], None]:
    return lambda state: state.update({key: value})


CONV = "module.backbone.down_tr64.ops.0.conv1.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop(CONV), r"does not fit unet: 1 missing: backbone\.down_tr64\.ops\.0\.conv1\.weight\.$"),
        (lambda state: state.pop("module.GAP.3.bias"), r"1 missing: GAP\.3\.bias\.$"),
        (lambda state: state.pop("module.organ_embedding"), r"1 missing: organ_embedding\.$"),
        (replace("module.extra.weight", torch.zeros(1)), r"1 left over: module\.extra\.weight\.$"),
        (replace("module.backbone.out.bias", torch.zeros(1)), r"1 left over: module\.backbone\.out\.bias\.$"),
        (
            rename(CONV, "module.backbone.down_tr64.ops.0.conv2.weight"),
            r"1 missing: backbone\.down_tr64\.ops\.0\.conv1\.weight; "
            r"1 left over: module\.backbone\.down_tr64\.ops\.0\.conv2\.weight\.$",
        ),
        (
            replace(CONV, torch.zeros(4, 1, 5, 5, 5)),
            r"1 of another shape: module\.backbone\.down_tr64\.ops\.0\.conv1\.weight "
            r"\(4, 1, 5, 5, 5\) for \(4, 1, 3, 3, 3\)\.$",
        ),
        (replace("module.controller.weight", torch.zeros(153, 512, 3, 3, 3)), r"weight \(153, 512, 3, 3, 3\) for"),
        (replace("module.organ_embedding", torch.zeros(25, 512)), r"organ_embedding has 25 rows; 31 or 32 labels"),
        (replace("module.organ_embedding", torch.zeros(32, 768)), r"organ_embedding \(32, 768\) for \(32, 512\)"),
        (replace("down_tr64.ops.0.conv1.weight", torch.zeros(4, 1, 3, 3, 3)), r"two names of the same weights"),
    ],
)  # fmt: skip
def test_altered_keys_are_named(
    unet: UniversalModel, tmp_path: Path, change: Callable[[State], Any], sentence: str
) -> None:
    state = publish(unet)
    change(state)
    with pytest.raises(KeysMismatch, match=sentence):
        import_checkpoint(save(tmp_path / "published.pth", {"net": state}))


def test_many_keys_are_counted_and_three_named(unet: UniversalModel, tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in publish(unet).items() if "up_tr" not in key}
    with pytest.raises(KeysMismatch) as caught:
        import_checkpoint(save(tmp_path / "published.pth", state))
    sentence = str(caught.value)
    assert "30 missing: " in sentence  # three levels of an up_conv and two units: 3 * (2 + 2 * 4)
    assert sentence.count("up_tr") == 3


def test_width_that_no_attention_head_divides_is_refused(tmp_path: Path) -> None:
    state = publish(narrow_model("swin_unetr"))
    state["module.backbone.swinViT.patch_embed.proj.weight"] = torch.zeros(13, 1, 2, 2, 2)
    with pytest.raises(KeysMismatch, match=r"patch_embed\.proj\.weight is off.*multiple of 12, not 13"):
        import_checkpoint(save(tmp_path / "published.pth", state))


@pytest.mark.parametrize(
    "content",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)},
        {"net": {"swinViT.a": torch.zeros(1), "down_tr64.a": torch.zeros(1)}},
        {"net": {}},
        {"net": [1, 2]},
        {"model": {"a": torch.zeros(1)}},
        {"epoch": 3},
        [torch.zeros(3)],
        torch.zeros(3),
    ],
)
def test_another_network_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(NetworkUnknown, match=r"published\.pth holds"):
        import_checkpoint(save(tmp_path / "published.pth", content))


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = str(crater)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.crater,)


def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    torch.save({"net": {"a": Bomb(crater)}}, tmp_path / "zip.pth")
    torch.save({"net": Bomb(crater)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"net": Bomb(crater)}))
    for name in ("zip.pth", "legacy.pth", "plain.pth"):
        with pytest.raises(CheckpointRefused, match=name):
            import_checkpoint(tmp_path / name)
        assert not crater.exists()
    with pytest.raises(CheckpointUnsafe, match="could run code"):
        import_checkpoint(tmp_path / "zip.pth")
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert crater.exists()  # it would have gone off


def test_damaged_and_foreign_files_are_refused(unet: UniversalModel, tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth", publish(unet)).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "cut-plain.pth").write_bytes(pickle.dumps({"net": list(range(100))})[:50])
    with zipfile.ZipFile(tmp_path / "other-zip.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for path in sorted(tmp_path.glob("*.pth")):
        if path.name != "whole.pth":
            with pytest.raises(CheckpointUnreadable, match=path.name):
                import_checkpoint(path)
    with pytest.raises(CheckpointUnreadable, match="There is no checkpoint"):
        import_checkpoint(tmp_path / "absent.pth")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def options(out: Path) -> tuple[str | Path, ...]:
    return ("--out", out, "--name", "universal", "--version", "1.0.0")


def test_refusal_is_one_line_and_leaves_no_bundle(unet: UniversalModel, tmp_path: Path) -> None:
    state = publish(unet)
    del state[CONV]
    nan = publish(unet) | {CONV: torch.full((4, 1, 3, 3, 3), torch.nan)}
    for content, sentence in ((state, "1 missing: backbone.down_tr64"), (nan, "not finite"), ({"a": 1}, "no weights")):
        result = run("import", save(tmp_path / "published.pth", content), *options(tmp_path / "out"))
        assert result.exit_code == 2
        (line,) = [line for line in result.stderr.splitlines() if line.strip()]
        assert line.startswith("error: ")
        assert sentence in line
        assert not (tmp_path / "out").exists()


def test_licence_of_ones_own_needs_its_text(unet: UniversalModel, tmp_path: Path) -> None:
    path = save(tmp_path / "published.pth", publish(unet))
    result = run("import", path, *options(tmp_path / "out"), "--licence", "MIT")
    assert result.exit_code == 2
    assert "The licence MIT needs its text: give --licence-file." in result.stderr


@pytest.fixture(scope="module")
def one_window() -> Iterator[None]:
    """Masks are compared on one window of 96 voxels of a slab, not on six of a trunk; the cartoon has 48 voxels."""
    slab = draw_phantom(0, spacing_mm=(3.0, 3.0, 3.0), field_of_view=FieldOfView(low_z=-40.0, high_z=60.0)).hu
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows_module, "MEASURING_WINDOWS", 1)
        patch.setattr(windows_module, "_phantom_hu", lambda _spacing_mm: slab.astype(np.float32))
        patch.setattr(windows_module, "trunk_window", lambda _size, config: trunk_window(SAMPLE_SIZE, config))
        yield


def import_and_verify(path: Path, out: Path) -> tuple[Path, dict[str, Any]]:
    result = run("import", path, *options(out))
    assert result.exit_code == 0, result.stderr
    bundle = out / "universal-1.0.0"
    verified = run("verify", bundle, "--checkpoint", path)
    assert verified.exit_code == 0, verified.stderr
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    assert {parity["engine"] for parity in manifest["precisions"][0]["parity"]} >= {"onnxruntime"}
    assert all(parity["max_relative_error"] < 1e-4 for parity in manifest["precisions"][0]["parity"])
    return bundle, manifest


@pytest.fixture(scope="module")
def imported(unet: UniversalModel, one_window: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of published weights of a narrow U-Net."""
    folder = tmp_path_factory.mktemp("imported")
    return import_and_verify(save(folder / "published.pth", {"net": publish(unet)}), folder / "out")[0]


def test_published_weights_become_a_bundle(imported: Path) -> None:
    bundle, manifest = imported, json.loads((imported / "manifest.json").read_text())
    assert manifest["licence"] == "CC-BY-NC-ND-4.0"
    assert "https://creativecommons.org/licenses/by-nc-nd/4.0/legalcode" in (bundle / "LICENSE").read_text()
    assert manifest["backbone"]["architecture"] == "unet"
    assert manifest["backbone"]["feature_stride"] == 1
    assert manifest["preprocessing"] == {
        "orientation": "RAS",
        "spacing_mm": [1.5, 1.5, 1.5],
        "intensity_range_hu": [-175.0, 250.0],
        "output_range": [0.0, 1.0],
        "interpolation": "linear",
        "foreground_crop": {"above_hu": -175.0},
    }
    assert manifest["sliding_window"]["roi_size"] == [96, 96, 96]
    assert "published.pth" in (bundle / "MODEL_CARD.md").read_text()


def published_masks(model: UniversalModel, scan: Path) -> NDArray[np.bool_]:
    """Masks (C,X,Y,Z) on the scan's grid as the released code makes them, in MONAI alone: nothing but a threshold."""
    image = nibabel.load(scan)
    steps = Compose([
        Orientationd("image", axcodes="RAS", labels=None),
        Spacingd("image", pixdim=(1.5, 1.5, 1.5), mode="bilinear"),
        ScaleIntensityRanged("image", a_min=-175, a_max=250, b_min=0.0, b_max=1.0, clip=True),
        CropForegroundd("image", source_key="image", allow_smaller=True),
    ])  # fmt: skip
    case = steps({"image": MetaTensor(image.get_fdata(dtype=np.float32)[None], affine=image.affine)})
    with torch.inference_mode():
        logits = sliding_window_inference(
            case["image"][None].as_tensor(), (96, 96, 96), 1, model, overlap=0.25, mode="gaussian"
        )
    case["masks"] = MetaTensor((logits[0].sigmoid() > 0.5).float(), meta=case["image"].meta)
    case["masks"].applied_operations = list(case["image"].applied_operations)
    back = Invertd("masks", transform=steps, orig_keys="image", nearest_interp=True)
    masks: NDArray[np.bool_] = back(case)["masks"].numpy() > 0.5
    return masks


def test_masks_are_those_of_the_published_pipeline(imported: Path, unet: UniversalModel, tmp_path: Path) -> None:
    """Voxels of 0.8 x 0.8 x 2.5 mm, towards left and posterior, air around the patient, two windows along x."""
    slab = draw_phantom(3, spacing_mm=(2.0, 2.0, 2.5), field_of_view=FieldOfView(-20.0, 40.0))
    scan = tmp_path / "ct.nii.gz"
    hu = slab.hu[::-1, ::-1][:200, :150]
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([-0.8, -0.8, 2.5, 1.0])), scan)
    request = SegmentationRequest(overlap=0.25, postprocessing=PostProcessing.NONE)
    segment_study(scan, tmp_path, load_bundle(imported), request)
    expected = published_masks(unet, scan)
    assert expected.shape[1:] == hu.shape
    assert expected.any(axis=(1, 2, 3)).sum() > 10
    for channel, label in enumerate(LABELS):
        mask = np.asarray(nibabel.load(tmp_path / "masks" / f"{label.name}.nii.gz").dataobj) > 0
        assert dice(mask, expected[channel]) >= 0.999, label.name


@pytest.mark.slow
@pytest.mark.timeout(3000)
@architectures
def test_networks_of_the_published_size_become_bundles(architecture: str, tmp_path: Path) -> None:
    """And segment a CT; windows in one batch have the logits that each has alone."""
    torch.manual_seed(0)
    model = settle_norms(UniversalModel(ModelConfig(architecture=architecture), torch.randn(32, 512) * 0.4))
    path = save(tmp_path / "published.pth", {"net": publish(model)})
    del model
    bundle, manifest = import_and_verify(path, tmp_path / "out")
    assert manifest["backbone"]["architecture"] == architecture
    assert (bundle / "backbone.onnx").stat().st_size < 2**31

    windows = np.random.default_rng(0).uniform(0, 1, (2, 96, 96, 96)).astype(np.float32)
    opened = load_bundle(bundle)
    together = opened.logits(windows)
    alone = np.concatenate([opened.logits(windows[n : n + 1]) for n in range(2)])
    assert np.abs(together - alone).max() <= 1e-5 * np.abs(alone).max()

    write_ct(
        draw_phantom(3, spacing_mm=(4.0, 4.0, 6.0), field_of_view=FieldOfView(-40.0, 80.0)), tmp_path / "ct.nii.gz"
    )
    viscera = str(Path(sys.executable).with_name("viscera"))
    segment = [viscera, "segment", tmp_path / "ct.nii.gz", "--out", tmp_path / "result", "--bundle", bundle]
    subprocess.run([*segment, "--targets", "all", "--overlap", "0"], check=True)
    source = nibabel.load(tmp_path / "ct.nii.gz")
    masks = [nibabel.load(mask) for mask in (tmp_path / "result" / "masks").glob("*.nii.gz")]
    assert len(masks) == 32
    assert all(mask.shape == source.shape and np.allclose(mask.affine, source.affine) for mask in masks)
