"""The network: sizes, the generated heads number by number, and the paper's formulation of them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.support.training import tiny_model
from training.config import ModelConfig
from training.networks.compact import Compact, VoiWindows
from training.networks.universal import (
    HEAD_PARAMETERS,
    HEAD_SIZES,
    UniversalModel,
    apply_heads,
    count_parameters,
)
from training.text import random_text_embedding

TEXT = random_text_embedding(0)[0]


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def paper_heads(features: Tensor, params: Tensor) -> Tensor:
    """Section 3.2 as published: features repeated C times, three grouped 1x1x1 convolutions, one sample at a time."""
    batch, labels, _ = params.shape
    logits = []
    for b in range(batch):
        start, parts = 0, []
        for size in (64, 64, 8, 8, 8, 1):
            parts.append(params[b, :, start : start + size])
            start += size
        w1, w2, w3, b1, b2, b3 = parts
        hidden = features[b].repeat(labels, 1, 1, 1)[None]
        for weight, bias, last in ((w1, b1, False), (w2, b2, False), (w3, b3, True)):
            kernel = weight.reshape(labels * bias.shape[1], 8, 1, 1, 1)
            hidden = functional.conv3d(hidden, kernel, bias.reshape(-1), groups=labels)
            hidden = hidden if last else torch.relu(hidden)
        logits.append(hidden[0])
    return torch.stack(logits)


def test_parameter_counts() -> None:
    backbone = Compact()
    model = UniversalModel(ModelConfig(), TEXT)
    assert count_parameters(backbone) == 2_647_552 <= 4_000_000
    # Over it: GroupNorm 2x160 and 2x32, 160 -> 256, 32 -> 8, text 512 -> 256, controller 512 -> 153.
    above = 320 + 64 + 161 * 256 + 33 * 8 + 513 * 256 + 513 * 153
    assert count_parameters(model) == 2_647_552 + above == 2_899_233


def test_a_head_has_153_parameters() -> None:
    assert HEAD_SIZES == (64, 64, 8, 8, 8, 1)
    assert HEAD_PARAMETERS == 153


@pytest.mark.parametrize("grid", [(16, 16, 16), (32, 16, 48)])
def test_shapes_and_stride(grid: tuple[int, int, int]) -> None:
    model = tiny_model()
    half = tuple(n // 2 for n in grid)
    with torch.inference_mode():
        window = random_tensor(2, 1, *grid)
        features, pooled = model.backbone_outputs(window)
        bottleneck, decoded = model.backbone(window)
        logits = model(window)
        heads, rows = model.head_params(pooled), model.text_rows()
    assert model.feature_stride == Compact.feature_stride == 2
    assert features.shape == (2, 8, *half)
    assert pooled.shape == (2, 256)
    assert bottleneck.shape == (2, 32, *(n // 16 for n in grid))
    assert decoded.shape == (2, 16, *half)
    assert heads.shape == (2, 32, 153)
    assert rows.shape == (32, 153)
    assert logits.shape == (2, 32, *half)


def test_voi_windows_of_40_hu() -> None:
    """Above the lung window, in the middle of soft tissue, below bone."""
    views = VoiWindows()(torch.full((1, 1, 1, 1, 1), 0.040))
    torch.testing.assert_close(views.flatten(), torch.tensor([1.0, 0.0, -1.0]))


def test_one_head_by_hand() -> None:
    """One path through the head: f[1] -> h1[0] -> h2[3] -> logit; indices in the order w1 w2 w3 b1 b2 b3, out x in."""
    params = torch.zeros(1, 2, 153)
    head = params[0, 1]
    head[0 * 8 + 1] = 2.0  # w1[0,1]
    head[64 + 3 * 8 + 0] = -1.0  # w2[3,0]
    head[128 + 3] = 0.5  # w3[3]
    head[136 + 0] = 1.0  # b1[0]
    head[144 + 3] = 10.0  # b2[3]
    head[152] = -0.25  # b3
    features = torch.zeros(1, 8, 1, 1, 3)
    features[0, 1, 0, 0] = torch.tensor([3.0, -4.0, 10.0])
    logits = apply_heads(features, params)
    # 2*3+1 = 7, 10-7 = 3; relu(2*-4+1) = 0, 10; 2*10+1 = 21, relu(10-21) = 0. Times 0.5, less 0.25.
    assert logits[0, 1, 0, 0].tolist() == [1.25, 4.75, -0.25]
    assert logits[0, 0].abs().max() == 0


def test_heads_are_the_papers_grouped_convolutions() -> None:
    features = random_tensor(2, 8, 3, 4, 5)
    params = random_tensor(2, 32, 153, seed=1)
    expected = paper_heads(features, params)
    difference = (apply_heads(features, params) - expected).abs().max() / expected.abs().max()
    assert difference < 1e-5


def test_head_parameters_are_the_controller_on_image_and_text() -> None:
    model = tiny_model()
    pooled = random_tensor(2, 256)
    with torch.inference_mode():
        params = model.head_params(pooled)
        for b in range(2):
            text = torch.relu(model.text_to_vision(model.text_embedding))
            both = torch.cat([pooled[b].expand(32, 256), text], dim=1)
            torch.testing.assert_close(params[b], model.controller(both), rtol=1e-5, atol=1e-5)


def test_some_labels_are_rows_of_all() -> None:
    model = tiny_model()
    window = random_tensor(2, 1, 16, 16, 16)
    rows = torch.tensor([31, 5])
    with torch.inference_mode():
        torch.testing.assert_close(model(window, channels=rows), model(window)[:, rows], rtol=1e-5, atol=1e-5)


def test_batch_companions_change_nothing_in_evaluation() -> None:
    """Unlike the released U-Net, whose batch norm always used the statistics of the batch."""
    model = tiny_model()
    window, bright = random_tensor(1, 1, 16, 16, 16), random_tensor(1, 1, 16, 16, 16, seed=1) + 1.0
    pair = torch.cat([window, bright])
    with torch.inference_mode():
        torch.testing.assert_close(model(pair)[:1], model(window), rtol=1e-4, atol=1e-4)
        model.train()
        alike = torch.cat([window, window])
        assert (model(pair)[:1] - model(alike)[:1]).abs().max() > 1e-2


def test_same_text_same_logits() -> None:
    """Labels are told apart by their text alone."""
    text = TEXT.clone()
    text[7] = text[3]
    torch.manual_seed(0)
    model = UniversalModel(tiny_model().config, text).eval()
    with torch.inference_mode():
        logits = model(random_tensor(1, 1, 16, 16, 16))
    torch.testing.assert_close(logits[:, 7], logits[:, 3])
    assert (logits[:, 7] - logits[:, 4]).abs().max() > 1e-3


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'compact', 'swin_unetr', 'unet', 'unetpp' or 'dints'"):
        ModelConfig(architecture="vast")


def test_learned_embedding_is_read_as_it_is() -> None:
    """The reference's `rand_embedding`: 256 numbers per label, negative ones too, and no text_to_vision."""
    embedding = random_tensor(3, 256)
    model = UniversalModel(tiny_model().config, embedding)
    assert not [key for key in model.state_dict() if key.startswith("text_to_vision")]
    with torch.inference_mode():
        rows = model.controller(torch.cat([torch.zeros(3, 256), embedding], dim=1))
        torch.testing.assert_close(model.text_rows(), rows)


@pytest.mark.parametrize("shape", [(512,), (32, 128), (1, 32, 512)])
def test_text_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(labels, 512\) or \(labels, 256\), not"):
        UniversalModel(ModelConfig(), torch.zeros(shape))


def test_a_leak_passes_what_a_head_holds_back() -> None:
    """One unit in each layer: -2 becomes 0, with a leak of 0.1 first -0.2, then -0.02, which is the logit."""
    features = torch.full((1, 8, 1, 1, 1), -0.25)
    params = torch.zeros(1, 1, HEAD_PARAMETERS)
    params[..., :8] = 1.0  # first unit of the first layer: the sum, -2
    params[..., 64] = 1.0
    params[..., 128] = 1.0
    assert apply_heads(features, params).item() == 0.0
    assert apply_heads(features, params, leak=0.1).item() == pytest.approx(-0.02)
