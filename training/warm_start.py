"""Training that goes on from a bundle: its graph and its head become the weights of a new network.

A bundle is what survives of a run: no optimiser, no text branch, batch norms folded away. Each of them comes back in a
form that computes the same: batch norms take the mean and the deviation that a first batch shows (`settle_norms`), and
the text branch is the smallest one that maps the labels' text features to the rows of the bundle's head.
"""

import hashlib
import json
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from training.checkpoint import Checkpoint, load_checkpoint
from training.config import ModelConfig
from training.networks.compact import ResidualBlock
from training.networks.universal import EMBEDDING_CHANNELS, HEAD_SIZES, PRIOR_LOGIT, UniversalModel
from training.text import TextProvenance

_GRAPH_PREFIX = "model."  # the exporter's name for the network, before its own parameter names
FRESH_STD = 0.5  # He's for 8 inputs: sqrt(2 / 8)
_FOLDED_BIAS = "_bias"  # added to the name of a convolution's weight: what batch norm left beside it


class WarmStartError(ValueError):
    """The bundle's weights are not those of the network that the recipe describes."""


def start_from_bundle(model: UniversalModel, bundle: Path, *, logit_scale: float = 1.0) -> None:
    """Gives the model the weights of a bundle of the same architecture; its logits come multiplied by `logit_scale`.

    Residual blocks that the bundle's network does not have yet start as the identity. A scale below 1 moves no border
    at probability 0.5, and gives a network that is sure of its errors a gradient again.
    Raises WarmStartError, also for a bundle that cannot be read.
    """
    try:
        graph = onnx.load(bundle / "backbone.onnx").graph
        head = load_file(bundle / "head.safetensors")
    except Exception as error:  # onnx and safetensors raise types of their own
        raise WarmStartError(f"{bundle.name} is not a readable bundle: {type(error).__name__}.") from error
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights |= _pooling_norm(graph, weights)
    named = {name.removeprefix(_GRAPH_PREFIX): value for name, value in weights.items()}
    _fill(model, named, bundle.name)
    _restore_text_branch(model, head, bundle.name)
    model.scale_logits(logit_scale)


def open_bundle(bundle: Path, config: ModelConfig, text_embedding: Tensor, text: TextProvenance) -> Checkpoint:
    """The network of a bundle as a checkpoint of `config`, not calibrated. Raises WarmStartError."""
    model = UniversalModel(config, text_embedding)
    start_from_bundle(model, bundle)
    content = (bundle / "manifest.json").read_bytes()
    manifest = json.loads(content)
    names = tuple(str(label["name"]) for label in manifest["labels"])
    training = {
        key: value for key, value in manifest["training"].items() if key != "checkpoint_sha256"
    }  # another one's
    return Checkpoint(model.eval(), config, names, text, training, hashlib.sha256(content).hexdigest())


def start_from_checkpoint(model: UniversalModel, checkpoint: Path) -> list[int]:
    """Gives the model the weights of a checkpoint, and answers which channels the checkpoint does not have.

    Those come last, and have whatever head their text gives them (`renew_heads` starts it anew). Raises WarmStartError
    for a checkpoint of another network or of other text features.
    """
    weights = load_checkpoint(checkpoint).model.state_dict()
    known, own = weights["text_embedding"].cpu(), model.text_embedding.cpu()
    if not torch.equal(known, own[: len(known)]):
        raise WarmStartError(f"{checkpoint.name} was trained on other text features; give those that it names.")
    try:
        model.load_state_dict(weights | {"text_embedding": own})
    except RuntimeError as error:
        raise WarmStartError(f"{checkpoint.name} is not of the recipe's network.") from error
    return list(range(len(known), len(own)))


@torch.no_grad()
def renew_heads(model: UniversalModel, channels: list[int], window: Tensor) -> None:
    """Starts the heads of some labels anew, at He's scale and `PRIOR_LOGIT` on such windows (B,1,D,H,W).

    For a label that is new, or whose head has died: one that is below 0 everywhere learns nothing. The other heads stay
    as they are, and the text branch changes as little as it can.
    """
    training = model.training
    rows = model.text_rows()
    image_part = functional.linear(model.eval().backbone_outputs(window)[1], model.image_weight()).mean(0)
    model.train(training)
    fresh = torch.randn(len(channels), sum(HEAD_SIZES), device=rows.device) * FRESH_STD
    fresh[:, sum(HEAD_SIZES[:3]) :] = 0.0
    fresh[:, -1] = PRIOR_LOGIT
    change = torch.zeros_like(rows, dtype=torch.float64)
    change[channels] = (fresh - image_part - rows[channels]).double()
    text_part = _smallest_text_part(model, change).float()
    model.controller.weight[:, EMBEDDING_CHANNELS:] += text_part[:, :-1]
    model.controller.bias[:] += text_part[:, -1]


@torch.no_grad()
def settle_norms(model: nn.Module, window: Tensor) -> None:
    """Every batch norm takes its statistics from `window` (B,1,D,H,W), and scale and shift so that eval mode computes
    what it did before. In training mode the function on such windows is then nearly the same too."""

    def settle(norm: nn.BatchNorm3d, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3, 4), correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
        norm.bias.copy_(shift + mean * scale)

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    training = model.training
    model.eval()(window)
    model.train(training)
    for hook in hooks:
        hook.remove()


def _pooling_norm(graph: onnx.GraphProto, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scale and shift of the norm before pooling, which the exporter leaves without names: x * scale + shift."""
    (normalised,) = (node.output[0] for node in graph.node if node.op_type == "InstanceNormalization")
    while True:  # past a reshape, to the product with the scale
        (after,) = (node for node in graph.node if normalised in node.input)
        if after.op_type == "Mul":
            break
        normalised = after.output[0]
    (shifted,) = (node for node in graph.node if after.output[0] in node.input)
    scale, shift = (next(name for name in node.input if name in weights) for node in (after, shifted))
    return {"gap.0.weight": weights[scale], "gap.0.bias": weights[shift]}


def _fill(model: UniversalModel, named: dict[str, Tensor], bundle: str) -> None:
    """Convolutions and named norms from the graph; batch norms become the shift that was folded into the one before."""
    modules = dict(model.named_modules())
    folded = {}
    for name in named:
        if name.endswith(".weight" + _FOLDED_BIAS):
            parent, _, index = name.removesuffix(".weight" + _FOLDED_BIAS).rpartition(".")
            folded[f"{parent}.{int(index) + 1}"] = named[name]
    state = model.state_dict()
    given = {}
    for name, value in state.items():
        owner, _, kind = name.rpartition(".")
        if owner in folded:
            norm = modules[owner]
            assert isinstance(norm, nn.BatchNorm3d)
            identity = {"weight": (1.0 + norm.eps) ** 0.5, "running_mean": 0.0, "running_var": 1.0}
            given[name] = folded[owner] if kind == "bias" else torch.full_like(value, identity.get(kind, 0))
        elif name in named:
            given[name] = named[name].reshape(value.shape) if named[name].numel() == value.numel() else named[name]
    expected = {name for name in state if not name.startswith(("text_", "controller."))}
    for block, module in modules.items():
        of_block = {name for name in expected if name.startswith(f"{block}.")}
        if isinstance(module, ResidualBlock) and not of_block & given.keys():
            module.become_identity()
            expected -= of_block
    missing = sorted(expected - given.keys())
    if missing:
        raise WarmStartError(f"{bundle} has no weights for {', '.join(missing[:5])}; is it of another architecture?")
    try:
        model.load_state_dict(given, strict=False)
    except RuntimeError as error:
        raise WarmStartError(f"The weights of {bundle} have other shapes than the recipe's network.") from error


def _restore_text_branch(model: UniversalModel, head: dict[str, Tensor], bundle: str) -> None:
    """A controller whose text part gives the rows K of the bundle on the model's own text features, in float64."""
    rows, image_part = head["K"].double(), head["W_image"]
    if len(rows) != len(model.text_embedding) or image_part.shape != model.image_weight().shape:
        raise WarmStartError(
            f"The head of {bundle} is for {len(rows)} labels; the network has {len(model.text_embedding)}."
        )
    with torch.no_grad():
        text_part = _smallest_text_part(model, rows.to(model.text_embedding.device))
        model.controller.weight[:, EMBEDDING_CHANNELS:] = text_part[:, :-1].float()
        model.controller.bias[:] = text_part[:, -1].float()
        model.controller.weight[:, :EMBEDDING_CHANNELS] = image_part


def _smallest_text_part(model: UniversalModel, rows: Tensor) -> Tensor:
    """The smallest text part (153,257) of the controller, its bias last, whose rows are these (C,153); float64."""
    text = model.text_embedding
    if model.text_to_vision is not None:
        text = torch.relu(model.text_to_vision(text))
    affine = torch.cat([text.double(), torch.ones(len(text), 1, dtype=torch.float64, device=text.device)], dim=1)
    solution: Tensor = (torch.linalg.pinv(affine) @ rows).T
    if not torch.allclose(affine @ solution.T, rows, atol=1e-6):
        raise WarmStartError("The text features do not tell the labels apart; give those that the bundle names.")
    return solution
