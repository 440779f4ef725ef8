"""An organ and a lesion that the label table does not have: their descriptions, and random text features of them."""

from dataclasses import replace
from pathlib import Path

import torch

from training.checkpoint import Checkpoint
from training.networks.universal import UniversalModel
from training.text import TextProvenance, embedding_sha256, write_text_embedding

UTERUS = """\
name = "uterus"
display_name = "Uterus"
kind = "organ"
color = [214, 120, 160]
type = { value = "35039007", meaning = "Uterus" }
"""
SPLEEN_TUMOR = """\
name = "spleen_tumor"
display_name = "Spleen tumor"
kind = "tumor"
color = [90, 20, 90]
hosts = ["spleen", "stomach"]
threshold = 0.7
[[postprocessing.viscera]]
rule = "within_hosts"
closing_mm = 2.0
dilation_mm = 4.0
[[postprocessing.viscera]]
rule = "min_volume"
ml = 0.25
"""
NAMES = ("Uterus", "Spleen tumor")
NEW_ROWS = torch.randn(2, 512, generator=torch.Generator().manual_seed(99)) * 0.4
#: Encoder and template are those of the checkpoints of `tests/export/conftest.py`.
TEXT = TextProvenance("random", "A computerized tomography of a {}.", "made for this test", "", "ab" * 32, NAMES)


def write_features(path: Path, rows: torch.Tensor = NEW_ROWS, names: tuple[str, ...] = NAMES, **changes: str) -> Path:
    """A file of features of both new names, as `viscera-train embed` writes it."""
    write_text_embedding(path, rows, replace(TEXT, names=names, **changes))
    return path


def with_row(checkpoint: Checkpoint, name: str, row: torch.Tensor) -> Checkpoint:
    """The checkpoint as if it had been trained with one label more."""
    embedding = torch.cat([checkpoint.model.text_embedding, row[None]])
    model = UniversalModel(checkpoint.config, embedding)
    model.load_state_dict(checkpoint.model.state_dict() | {"text_embedding": embedding})
    return replace(
        checkpoint,
        model=model.eval(),
        label_names=(*checkpoint.label_names, name),
        text=replace(checkpoint.text, sha256=embedding_sha256(embedding)),
    )
