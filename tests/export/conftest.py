"""A small network with random weights, its checkpoint and its bundle: each made once for all export tests."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from model_export import bundle as bundle_module
from model_export.bundle import write_bundle
from model_export.onnx import export_backbone
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import ModelConfig
from training.labels import LABELS
from training.networks.universal import UniversalModel
from training.text import TextProvenance, embedding_sha256, random_text_embedding

NAME, VERSION = "viscera-small", "1.2.3"
CREATED = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
LABEL_NAMES = tuple(label.name for label in LABELS)
CONFIG = ModelConfig(channels=(16, 16, 32, 32), roi_size=(48, 48, 64))
DATA = "procedural phantoms, seeds 0 to 9"

WriteCheckpoint = Callable[..., Path]


def random_model(seed: int) -> UniversalModel:
    """A network whose batch norms do something, as after training, so that folding them can go wrong."""
    torch.manual_seed(seed)
    model = UniversalModel(CONFIG, random_text_embedding(seed)[0])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.2, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def one_export_per_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same weights give the same graph (test_export_graph.py), and the exporter is slow: each goes through once."""
    folder = tmp_path_factory.mktemp("graphs")

    def export_once(model: UniversalModel, path: Path) -> None:
        digest = sha256(model.config.model_dump_json().encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        graph = folder / digest.hexdigest()
        if not graph.exists():
            export_backbone(model, graph)
        path.write_bytes(graph.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_backbone", export_once)
        yield


@pytest.fixture(scope="session")
def write_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> WriteCheckpoint:
    """Writes a checkpoint of `random_model(seed)`; `change` alters the model first."""

    def write(
        seed: int = 0,
        *,
        change: Callable[[UniversalModel], None] | None = None,
        label_names: tuple[str, ...] = LABEL_NAMES,
        training: dict[str, Any] | None = None,
        text_sha256: str | None = None,
    ) -> Path:
        model = random_model(seed)
        if change is not None:
            change(model)
        sha256 = text_sha256 or embedding_sha256(model.text_embedding)
        path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
        save_checkpoint(
            path,
            model,
            label_names=label_names,
            text=TextProvenance("random", "A computerized tomography of a {}.", "made for this test", sha256),
            training={"data": DATA, "steps": 7} if training is None else training,
        )
        return path

    return write


@pytest.fixture(scope="session")
def checkpoint_path(write_checkpoint: WriteCheckpoint) -> Path:
    return write_checkpoint(0)


@pytest.fixture(scope="session")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_path)


@pytest.fixture(scope="session")
def written_bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle to read; tests that alter it work on a copy."""
    return write_bundle(checkpoint, tmp_path_factory.mktemp("bundles"), name=NAME, version=VERSION, created=CREATED)
