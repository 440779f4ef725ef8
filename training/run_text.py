"""The text features of a run: one row per label of its table, the first ones as in the checkpoint that it starts from.

Rows are whitened over the 32 labels alone, and those of own labels by the same map: however many labels join later, the
rows that a network was trained on stay what they were.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from training.checkpoint import load_checkpoint
from training.label_table import LabelTable, OtherLabels
from training.labels import LABELS, Label
from training.recipe import Recipe
from training.text import (
    WHITENED,
    TextEmbeddingError,
    TextProvenance,
    embedding_sha256,
    random_text_embedding,
    read_rows,
    read_text_embedding,
    whiten,
    whiten_like,
)

_SAME_ROWS = 1e-4  # of the largest value: rows whitened twice differ by rounding


@dataclass(frozen=True)
class RunText:
    """Features (C,512) float32 in the order of the label table; `drawn` are labels whose row is random."""

    embedding: Tensor
    provenance: TextProvenance
    drawn: tuple[str, ...] = ()


def run_text(recipe: Recipe, table: LabelTable, *, features: Path | None, start_from: Path | None) -> RunText:
    """Rows of a file of features, of the checkpoint (.pt) that the run starts from, or random ones.

    A checkpoint's rows stay as they are, and its text counts, not the recipe's. What is not in it comes from
    `features`, and what these lack is drawn at random, as long as the other rows. Raises TextEmbeddingError,
    CheckpointError, OtherLabels for a checkpoint of labels with which the table does not begin.
    """
    if start_from is None or start_from.suffix != ".pt":
        known, text = text_of_the_32(recipe, features)
        whitened = recipe.whiten_text
    else:
        checkpoint = load_checkpoint(start_from)
        check_begins_with(table, checkpoint.label_names, start_from.name)
        known, text = checkpoint.model.text_embedding, checkpoint.text
        whitened = text.encoder.endswith(WHITENED)
    of_file: dict[str, Tensor] = {}
    if features is not None:
        of_file = _own_rows(features, table.labels[len(LABELS) :], whitened=whitened)
        _check_same(known, table, features, of_file, whitened=whitened)
    added = table.labels[len(known) :]
    if not added:
        return RunText(known, text)
    drawn = tuple(label.name for label in added if label.name not in of_file)
    rows = [of_file[label.name] if label.name in of_file else _stand_in(label, known) for label in added]
    embedding = torch.cat([known, torch.stack(rows)])
    source = f"{text.source}; drawn at random: {', '.join(drawn)}" if drawn else text.source
    names = (*text.names, *(label.prompt for label in added)) if text.names else ()
    provenance = replace(text, source=source, names=names, sha256=embedding_sha256(embedding))
    return RunText(embedding, provenance, drawn)


def check_begins_with(table: LabelTable, names: tuple[str, ...], checkpoint: str) -> None:
    """Raises OtherLabels unless the table has the labels of a checkpoint, in their order, before any others."""
    if table.names[: len(names)] != names:
        other = next((name for name, own in zip(names, table.names, strict=False) if name != own), names[-1])
        raise OtherLabels(
            f"{checkpoint} has the label {other!r} where the store has another or none; describe the labels of the "
            "checkpoint with --label, in its order and before new ones, when you harmonize."
        )


def text_of_the_32(recipe: Recipe, features: Path | None) -> tuple[Tensor, TextProvenance]:
    """Those of a file, prepared as the recipe says, or random ones. Raises TextEmbeddingError."""
    if features is None:
        return random_text_embedding(recipe.seed)
    embedding, text = read_text_embedding(features)
    return whiten(embedding, text) if recipe.whiten_text else (embedding, text)


def _own_rows(features: Path, own: Sequence[Label], *, whitened: bool) -> dict[str, Tensor]:
    """The rows of own labels that the file has, by the name of the label."""
    raw = read_rows(features, [label.prompt for label in own])
    found = {label.name: raw[label.prompt] for label in own if label.prompt in raw}
    if not found or not whitened:
        return found
    rows = whiten_like(torch.stack(list(found.values())), read_text_embedding(features)[0])
    return dict(zip(found, rows, strict=True))


def _check_same(
    known: Tensor, table: LabelTable, features: Path, of_file: dict[str, Tensor], *, whitened: bool
) -> None:
    """Raises TextEmbeddingError where the file has another row for a label of the checkpoint."""
    embedding, text = read_text_embedding(features)
    embedding = whiten(embedding, text)[0] if whitened else embedding
    of_file = of_file | {label.name: row for label, row in zip(LABELS, embedding, strict=True)}
    for name, row in zip(table.names, known, strict=False):
        given = of_file.get(name, row)
        if given.shape != row.shape or not torch.allclose(given, row, atol=_SAME_ROWS * float(row.abs().max())):
            raise TextEmbeddingError(
                f"{features.name} has other features of {name!r} than the checkpoint was trained on; leave it out, or "
                "give the file that the checkpoint had."
            )


def _stand_in(label: Label, known: Tensor) -> Tensor:
    """A random row, the same for a label's name in every run, as long as the known ones are on average."""
    seed = int.from_bytes(hashlib.sha256(label.name.encode()).digest()[:7], "big")
    row = torch.randn(known.shape[1], generator=torch.Generator().manual_seed(seed))
    as_long: Tensor = row * (known.norm(dim=1).mean() / row.norm())
    return as_long
