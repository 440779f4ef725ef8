"""The backbones of the published weights: sizes, names, and what sets them apart, each against numbers or MONAI."""

import contextlib
import io

import pytest
import torch
from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus
from monai.networks.nets.dints import DiNTS as MonaiDiNTS
from monai.networks.nets.dints import TopologyInstance
from monai.networks.nets.swin_unetr import PatchMerging, compute_mask
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR
from torch import Tensor, nn

from tests.support.networks import NARROW, narrow_model
from tests.support.training import tiny_model
from training.config import ModelConfig
from training.networks import dints
from training.networks.swin_unetr import MergePatches, SwinUnetr, shift_mask
from training.networks.unet import UNet, _Unit
from training.networks.universal import UniversalModel, count_parameters

# Liu et al., ICCV 2023, the released networks: parameters of the backbone and in all, entries of the state dict,
# channels of the bottleneck, its edge in a window of 96 voxels, and channels of the decoder.
PUBLISHED = {
    "unet": (19_073_600, 19_416_417, 117, 512, 12, 64),
    "swin_unetr": (62_186_610, 62_595_315, 170, 768, 3, 48),
    "unetpp": (6_979_712, 7_256_161, 153, 256, 6, 32),
    "dints": (152_333_216, 152_675_713, 510, 512, 6, 32),
}
# The published U-Net has running_mean, running_var and num_batches_tracked for each of its 14 norms (8 on the way
# down, 6 on the way up). They were never used, an instance norm has none, and so our state dict has 42 entries less.
UNUSED_ENTRIES = {"unet": 14 * 3}

architectures = pytest.mark.parametrize("architecture", PUBLISHED)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@architectures
def test_sizes_are_the_published_ones(architecture: str) -> None:
    of_backbone, in_all, entries, bottleneck_channels, bottleneck_edge, decoder_channels = PUBLISHED[architecture]
    with torch.device("meta"):
        model = UniversalModel(ModelConfig(architecture=architecture), torch.zeros(32, 512)).eval()
        bottleneck, decoded = model.backbone(torch.zeros(1, 1, 96, 96, 96))
    assert count_parameters(model.backbone) == of_backbone
    assert count_parameters(model) == in_all
    assert len(model.state_dict()) == entries - UNUSED_ENTRIES.get(architecture, 0)
    assert bottleneck.shape == (1, bottleneck_channels, *[bottleneck_edge] * 3)
    assert decoded.shape == (1, decoder_channels, 96, 96, 96)
    backbone = model.backbone
    assert (backbone.bottleneck_channels, backbone.decoder_channels) == (bottleneck_channels, decoder_channels)
    assert backbone.feature_stride == 1


@architectures
def test_window_edges_are_multiples_of_what_the_backbone_says(architecture: str) -> None:
    edges = [2 * narrow_model(architecture).backbone.size_multiple, 96, 64]
    with torch.device("meta"):
        config = ModelConfig(architecture=architecture, feature_size=NARROW[architecture])
        logits = UniversalModel(config, torch.zeros(32, 512)).eval()(torch.zeros(2, 1, *edges))
    assert logits.shape == (2, 32, *edges)


@pytest.mark.parametrize("architecture", ["unet", "unetpp", "dints"])
def test_companions_in_the_batch_change_nothing(architecture: str) -> None:
    """The released U-Net's norm took the statistics of the whole batch."""
    model = narrow_model(architecture)
    window, bright = random_tensor(1, 1, 32, 32, 32), random_tensor(1, 1, 32, 32, 32, seed=1) * 3.0 + 5.0
    with torch.inference_mode():
        alone = model(window)
        for mode in (model.eval, model.train):
            torch.testing.assert_close(mode()(torch.cat([window, bright]))[:1], alone, rtol=1e-4, atol=1e-5)


def test_norm_of_the_unet_by_hand() -> None:
    """Two voxels of 1 and 3 are -1 and 1 once normalised; times 2, plus 1: -1 and 3; after the ReLU 0 and 3."""
    unit = _Unit(1, 1)
    nn.init.dirac_(unit.conv1.weight)
    nn.init.zeros_(unit.conv1.bias)
    nn.init.constant_(unit.bn1.weight, 2.0)
    nn.init.constant_(unit.bn1.bias, 1.0)
    voxels = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(unit(voxels).flatten(), torch.tensor([0.0, 3.0]), atol=1e-4, rtol=0)


def test_unet_goes_up_on_the_skip_of_its_own_level() -> None:
    """In the joined features the upsampled channels come first: a unit that reads only those ignores the skip."""
    backbone = UNet(8).eval()
    first = backbone.up_tr64.ops[0].conv1.weight
    assert first.shape == (8, 16 + 8, 3, 3, 3)
    deep, skip = random_tensor(1, 16, 4, 4, 4), random_tensor(1, 8, 8, 8, 8, seed=1)
    with torch.inference_mode():
        first[:, 16:] = 0.0
        torch.testing.assert_close(backbone.up_tr64(deep, skip), backbone.up_tr64(deep, skip + 1.0))


def corner_numbers() -> Tensor:
    """Voxels (1,2,2,2,1) that carry the number of their corner: 4 d + 2 h + w."""
    return torch.arange(8.0).reshape(1, 2, 2, 2, 1)


def test_corners_that_are_joined() -> None:
    complete = MergePatches(1, "complete").join(corner_numbers()).flatten()
    assert complete.tolist() == [0, 4, 2, 1, 6, 5, 3, 7]
    # Published weights: the corners 2 and 1 twice, 6 and 3 never.
    duplicated = MergePatches(1, "duplicated").join(corner_numbers()).flatten()
    assert duplicated.tolist() == [0, 4, 2, 1, 5, 2, 1, 7]


def test_blocks_of_a_larger_grid_stay_apart() -> None:
    """Along w the first block holds 0 and 1, the second 2 and 3."""
    grid = torch.arange(4.0).reshape(1, 1, 1, 4, 1).expand(1, 2, 2, 4, 1)
    joined = MergePatches(1, "complete").join(grid)
    assert joined.shape == (1, 1, 1, 2, 8)
    assert joined[0, 0, 0].tolist() == [[0, 0, 0, 1, 0, 1, 1, 1], [2, 2, 2, 3, 2, 3, 3, 3]]


def test_complete_merging_is_monais() -> None:
    ours, theirs = MergePatches(6, "complete"), PatchMerging(6)
    theirs.load_state_dict(ours.state_dict())
    features = random_tensor(2, 4, 6, 8, 6)
    with torch.inference_mode():
        torch.testing.assert_close(ours(features), theirs(features), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("padded", "window", "shift"),
    [
        ((28, 28, 28), (7, 7, 7), (3, 3, 3)),
        ((14, 7, 21), (7, 7, 7), (3, 0, 3)),
        ((28, 3, 14), (7, 3, 7), (3, 0, 3)),
        ((6, 6, 6), (6, 6, 6), (0, 0, 0)),
    ],
)
def test_mask_of_shifted_windows_is_monais(
    padded: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    cpu = torch.device("cpu")
    assert torch.equal(shift_mask(padded, window, shift, cpu), compute_mask(padded, window, shift, cpu))


def test_patch_merging_of_the_configuration_is_used() -> None:
    window = random_tensor(1, 1, 64, 64, 64)
    outputs = {}
    for merging in ("complete", "duplicated"):
        torch.manual_seed(0)
        with torch.inference_mode():
            outputs[merging] = SwinUnetr(12, merging).eval()(window)[0]
    assert (outputs["complete"] - outputs["duplicated"]).abs().max() > 0.1


def test_names_of_swin_unetr_are_monais() -> None:
    theirs = MonaiSwinUNETR(in_channels=1, out_channels=2, feature_size=12).state_dict()
    ours = SwinUnetr(12).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.items() if not key.startswith("out.")
    }
    for key, tensor in ours.items():
        if key.endswith("relative_position_index"):
            assert torch.equal(tensor, theirs[key])


def test_feature_size_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 12, not 40"):
        SwinUnetr(40)


def test_unetpp_is_monais_without_its_last_layer() -> None:
    ours = narrow_model("unetpp").backbone
    theirs = BasicUNetPlusPlus(features=(8, 8, 16, 32, 64, 8)).eval()
    loaded = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert loaded.unexpected_keys == []
    assert {key.rpartition(".")[0] for key in loaded.missing_keys} == {f"final_conv_0_{j}" for j in (1, 2, 3, 4)}
    window = random_tensor(1, 1, 32, 32, 48)
    with torch.inference_mode():
        (expected,) = theirs(window)
        torch.testing.assert_close(theirs.final_conv_0_4(ours(window)[1]), expected)


def test_dints_is_monais_with_the_published_codes() -> None:
    """MONAI's own forward on the codes, its last layers set aside, gives our decoder features."""
    ours = narrow_model("dints").backbone
    with contextlib.redirect_stdout(io.StringIO()):
        codes = [dints._code(dints.ACTIVE), dints._code(dints.CELLS)]
        space = TopologyInstance(codes, channel_mul=4 / 32, num_blocks=12, num_depths=4)
    node_a = torch.ones(13, 4)
    node_a[0, 3] = node_a[12, 1] = 0  # its first and last rows are 1110 and 1011
    theirs = MonaiDiNTS(space, 1, 2, node_a=node_a).eval()
    theirs.stem_finals = nn.Identity()
    assert (space.arch_code2in, space.arch_code2out) == tuple(map(list, zip(*dints.PATHS, strict=True)))
    theirs.load_state_dict(ours.state_dict())
    window = random_tensor(1, 1, 32, 48, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(window)[1], theirs(window), rtol=1e-4, atol=1e-4)


def test_configuration_of_an_older_checkpoint_is_still_one() -> None:
    written = {
        "architecture": "compact", "channels": [32, 64, 96, 160], "spacing_mm": [2.0, 2.0, 2.0],
        "intensity_range_hu": [-1000.0, 1000.0], "output_range": [-1.0, 1.0], "interpolation": "linear_antialias",
        "foreground_above_hu": -300.0, "roi_size": [96, 96, 96], "overlap": 0.5,
    }  # fmt: skip
    assert ModelConfig.model_validate(written) == ModelConfig()


def test_names_of_compact_are_what_they_were() -> None:
    keys = tiny_model().state_dict().keys()
    assert len(keys) == 121
    assert {key.split(".")[0] for key in keys} == {
        "text_embedding", "backbone", "gap", "feature_head", "text_to_vision", "controller"
    }  # fmt: skip
    assert {key.split(".")[1] for key in keys if key.startswith("backbone.")} == {
        "stem", "encoder0", "encoder1", "encoder2", "encoder3", "up2", "decoder2", "up1", "decoder1", "refine1", "up0",
        "decoder0",
    }  # fmt: skip
