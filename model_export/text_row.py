"""The one row of text features that a new label gets, in the form that the checkpoint's controller was trained on.

Rows of two encoders, of two templates, or with and without whitening do not mix: a controller reads a foreign row as
something, but nothing says as what. So whatever cannot be shown to be of the same kind is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model_export.errors import EmbeddingRefused
from training.checkpoint import Checkpoint
from training.labels import LABELS
from training.text import (
    PUBLISHED_SOURCE,
    WHITENED,
    TextEmbeddingError,
    TextProvenance,
    embedding_sha256,
    read_features,
    whiten,
    whiten_like,
)

_SAME_ROWS = 1e-4  # of the largest value: rows whitened twice differ by rounding


@dataclass(frozen=True)
class TextRow:
    """`row` (512,) float32 as the controller reads it, of the prompt `name`; its encoder and template are the run's."""

    row: Tensor
    name: str
    source: str
    weights_sha256: str | None

    @property
    def sha256(self) -> str:
        """Of the float32 bytes."""
        return embedding_sha256(self.row)


def row_from_text(features: Path, prompt: str, checkpoint: Checkpoint, trained_features: Path | None) -> TextRow:
    """The row of `prompt` in a file of features, made like the rows that the checkpoint was trained on.

    `trained_features` is the file that the run was given; a whitened run cannot do without it. Raises EmbeddingRefused.
    """
    if checkpoint.model.text_to_vision is None:
        raise EmbeddingRefused(
            "The checkpoint learned its embeddings and reads no text; a label needs a row by training."
        )
    rows, text = _read(features)
    _check_same_kind(text, checkpoint.text, features.name)
    row = rows[_position(rows, text, prompt, features.name)]
    if checkpoint.text.encoder.endswith(WHITENED):
        row = whiten_like(row[None], _trained_rows(trained_features, checkpoint))[0]
    _check_distinct(row, prompt, checkpoint)
    return TextRow(row, prompt, text.source, text.weights_sha256)


def row_of_checkpoint(checkpoint: Checkpoint, label: str, prompt: str) -> TextRow:
    """The row that the checkpoint was trained with for one of its labels."""
    position, text = checkpoint.label_names.index(label), checkpoint.text
    name = text.names[position] if text.names else prompt
    return TextRow(checkpoint.model.text_embedding[position], name, text.source, text.weights_sha256)


def _read(path: Path) -> tuple[Tensor, TextProvenance]:
    try:
        return read_features(path)
    except TextEmbeddingError as error:
        raise EmbeddingRefused(str(error)) from error


def _check_same_kind(text: TextProvenance, trained: TextProvenance, file: str) -> None:
    """Raises EmbeddingRefused unless both are of one encoder and one template, as far as they say."""
    encoder = trained.encoder.removesuffix(WHITENED)
    if text.encoder != encoder:
        raise EmbeddingRefused(f"{file} is of the encoder {text.encoder!r}, the checkpoint was trained on {encoder!r}.")
    if text.prompt_template != trained.prompt_template:
        raise EmbeddingRefused(
            f"{file} was made with the template {text.prompt_template!r}, the checkpoint's text with "
            f"{trained.prompt_template!r}; make it again with that one."
        )
    stated = {text.weights_sha256, trained.weights_sha256} - {None}
    if len(stated) > 1:
        raise EmbeddingRefused(f"{file} was made with other weights of {encoder} than the checkpoint's text.")


def _position(rows: Tensor, text: TextProvenance, prompt: str, file: str) -> int:
    """The row of the prompt, by the names in the file, or in the order of the label table for the published rows."""
    names: Sequence[str] = text.names
    if not names and text.source == PUBLISHED_SOURCE:
        names = [label.prompt for label in LABELS]
    if not names:
        raise EmbeddingRefused(f"{file} does not say which names its {len(rows)} rows are of.")
    found = [number for number, name in enumerate(names) if name.casefold() == prompt.casefold()]
    if len(found) != 1:
        listed = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
        raise EmbeddingRefused(
            f"{file} has {len(found)} rows of {prompt!r}; it has {listed}. Set `prompt` in the label."
        )
    return found[0]


def _trained_rows(path: Path | None, checkpoint: Checkpoint) -> Tensor:
    """The raw rows that the checkpoint's text was whitened from."""
    if path is None:
        raise EmbeddingRefused(
            "The checkpoint's text was whitened over its labels; the new row needs the same map. Give the file that "
            "the training had as --text-embeddings."
        )
    rows, text = _read(path)
    count = len(checkpoint.label_names) - len(checkpoint.own_labels)  # own labels came later, under the same map
    trained = checkpoint.model.text_embedding[:count]
    rows = rows[:count]
    if rows.shape != trained.shape or not _close(whiten(rows, text)[0], trained):
        raise EmbeddingRefused(f"{path.name} does not give the text embedding of the checkpoint when it is whitened.")
    return rows


def _check_distinct(row: Tensor, prompt: str, checkpoint: Checkpoint) -> None:
    for name, known in zip(checkpoint.label_names, checkpoint.model.text_embedding, strict=True):
        if _close(row, known):
            raise EmbeddingRefused(
                f"The features of {prompt!r} are those of the label {name!r}; both would be one mask."
            )


def _close(first: Tensor, second: Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=0.0, atol=_SAME_ROWS * float(second.abs().max())))
