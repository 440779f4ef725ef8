"""Checkpoints: what is saved is what is loaded, and nothing else is."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import TINY_CONFIG, tiny_model
from training import checkpoint as checkpoint_file
from training.checkpoint import CheckpointError, load_checkpoint, read_content, save_checkpoint
from training.labels import LABELS
from training.text import TextProvenance

NAMES = tuple(label.name for label in LABELS)
TEXT = TextProvenance("CLIP ViT-B/32", "A CT of a {}.", "made for this test", "0" * 64, "1" * 64, NAMES)


class Code:
    """Anything that only a pickle with code can hold."""


def save(path: Path, seed: int = 0, **extra: Any) -> Path:
    save_checkpoint(path, tiny_model(seed), label_names=NAMES, text=TEXT, training={"steps": 7}, **extra)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "run" / "model.pt")


def test_round_trip_gives_identical_logits(path: Path) -> None:
    loaded = load_checkpoint(path)
    window = torch.rand((1, 1, 16, 16, 32), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(loaded.model(window), tiny_model()(window))
    assert not loaded.model.training
    assert (loaded.config, loaded.label_names, loaded.text) == (TINY_CONFIG, NAMES, TEXT)
    assert loaded.training == {"steps": 7}
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_text_that_names_neither_weights_nor_names_is_read(path: Path) -> None:
    """As checkpoints were before text features could be made here."""
    content = torch.load(path, weights_only=True)
    del content["text"]["weights_sha256"], content["text"]["names"]
    torch.save(content, path)
    assert load_checkpoint(path).text == replace(TEXT, weights_sha256=None, names=())


def test_only_the_checkpoint_is_left(path: Path) -> None:
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_interrupted_save_keeps_the_last_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def half(content: object, file: Any) -> None:
        file.write(b"half a ")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_file.torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save(path, seed=1)
    assert path.read_bytes() == before


def test_resume_state_survives(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model(torch.rand(1, 1, 16, 16, 16)).mean().backward()
    optimizer.step()
    path = save(tmp_path / "last.pt", resume={"step": 41, "optimizer": optimizer.state_dict()})

    resume = read_content(path)["resume"]
    assert resume["step"] == 41
    again = torch.optim.AdamW(tiny_model().parameters(), 9.0)
    again.load_state_dict(resume["optimizer"])
    assert again.param_groups[0]["lr"] == 1e-3
    expected = optimizer.state_dict()["state"]
    restored = again.state_dict()["state"]
    assert restored.keys() == expected.keys()
    assert all(torch.equal(restored[i]["exp_avg_sq"], expected[i]["exp_avg_sq"]) for i in expected)


@pytest.mark.parametrize("content", [
    {"net": {}, "epoch": 3}, {"format": 2}, [1, 2], torch.zeros(3), {"format": 1}, {"format": 1, "state_dict": {}},
])  # fmt: skip
def test_foreign_files_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match=r"foreign\.pth is not a viscera checkpoint of format 1"):
        load_checkpoint(tmp_path / "foreign.pth")


def test_torch_version_noted_as_it_is_can_be_read(path: Path) -> None:
    """`torch.__version__` is a string of a class of its own."""
    torch.save(read_content(path) | {"training": {"torch": torch.__version__}}, path)
    assert load_checkpoint(path).training == {"torch": str(torch.__version__)}


def test_broken_absent_and_code_carrying_files_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not really")
    torch.save({"format": 1, "state_dict": Code()}, tmp_path / "code.pt")
    for name in ("broken.pt", "absent.pt", "code.pt"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read"):
            read_content(tmp_path / name)


@pytest.mark.parametrize("change", [
    {"config": {"channels": [32, 16, 16, 32]}}, {"config": {"architecture": "vast"}}, {"config": {"colour": "red"}},
    {"state_dict": {}},
])  # fmt: skip
def test_weights_that_do_not_fit_their_configuration_are_refused(path: Path, change: dict[str, Any]) -> None:
    torch.save(read_content(path) | change, path)
    with pytest.raises(CheckpointError, match="does not fit its own configuration"):
        load_checkpoint(path)
