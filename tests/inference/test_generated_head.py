"""The text-driven head: one voxel worked by hand, and the published formulation on random numbers."""

import torch
from torch.nn.functional import conv3d

from service.inference.head import PARAMETERS_PER_LABEL, head_logits, head_params


def test_one_voxel_by_hand() -> None:
    w1 = torch.zeros(8, 8)
    w1[0, 1] = 2.0  # h0 = 2 * f1 + 1; out x in
    w1[3, 2] = 1.0  # h3 = f2 - 10, below zero
    b1 = torch.zeros(8)
    b1[0], b1[3] = 1.0, -10.0
    w2 = torch.zeros(8, 8)
    w2[5, 0] = -1.0  # g5 = -h0 + 20
    w2[6, 0] = -1.0  # g6 = -h0, below zero
    w2[7, 3] = 4.0  # g7 = 4 * h3 = 0
    b2 = torch.zeros(8)
    b2[5] = 20.0
    w3 = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 100.0, 100.0])
    b3 = torch.tensor([-3.0])
    params = torch.cat([w1.ravel(), w2.ravel(), w3, b1, b2, b3])[None]
    features = torch.tensor([0.0, 4.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0])[:, None]

    # h0 = 9, h3 = relu(-5) = 0; g5 = 11, g6 = relu(-9) = 0; 0.5 * 11 - 3
    assert head_logits(features, params).item() == 2.5


def test_parity_with_features_repeated_and_grouped_convolutions() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, size = 5, (23, 24, 25)  # 13800 voxels: some blocks, the last not full
    features = torch.randn((8, *size), generator=generator)
    params = torch.randn((labels, PARAMETERS_PER_LABEL), generator=generator)

    w1, w2, w3, b1, b2, b3 = params.split([64, 64, 8, 8, 8, 1], dim=1)
    hidden = features.repeat(labels, 1, 1, 1)[None]
    for weight, bias in ((w1, b1), (w2, b2)):
        hidden = conv3d(hidden, weight.reshape(labels * 8, 8, 1, 1, 1), bias.reshape(-1), groups=labels).relu()
    expected = conv3d(hidden, w3.reshape(labels, 8, 1, 1, 1), b3.reshape(-1), groups=labels)[0]

    logits = head_logits(features.reshape(8, -1), params).reshape(labels, *size)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)


def test_parameters_are_the_image_part_of_each_window_plus_the_text_part_of_each_label() -> None:
    generator = torch.Generator().manual_seed(0)
    pooled, w_image, k = (torch.randn(shape, generator=generator) for shape in ((2, 256), (153, 256), (3, 153)))

    params = head_params(pooled, w_image, k)

    assert params.shape == (2, 3, 153)
    torch.testing.assert_close(params[1, 2], w_image @ pooled[1] + k[2], rtol=1e-4, atol=1e-4)


def test_fewer_rows_give_fewer_labels_and_the_same_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((8, 100), generator=generator)
    params = torch.randn((4, PARAMETERS_PER_LABEL), generator=generator)
    subset = head_logits(features, params[[1, 3]])
    torch.testing.assert_close(subset, head_logits(features, params)[[1, 3]])
