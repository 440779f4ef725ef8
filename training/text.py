"""Text embeddings of the labels, from and to a file: the model's only link to CLIP.

Two layouts: safetensors with a tensor `text_embedding` (C,512) and provenance in its metadata, and a bare torch tensor
(.pth), as published with the paper, whose provenance is then the paper's. Never a pickle with code: weights_only.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from training.labels import LABELS
from training.networks.universal import TEXT_CHANNELS

PUBLISHED_ENCODER = "CLIP ViT-B/32"
PUBLISHED_TEMPLATE = "A computerized tomography of a {}"  # prompt V3 of the paper's Table 1, as the features were made
PUBLISHED_SOURCE = (
    "text features published with arXiv 2301.00785 (github.com/ljwztc/CLIP-Driven-Universal-Model, "
    "pretrained_weights/txt_encoding.pth, CC BY-NC-ND 4.0)"
)

WHITENED_SCALE = 22.6  # the standard deviation of a whitened value is then about 1, as a first layer expects
WHITENED = ", whitened over the labels"  # added to the encoder's name


@dataclass(frozen=True)
class TextProvenance:
    """Which encoder saw which prompts, where the features came from; `sha256` is of the float32 embedding bytes.

    `weights_sha256` is of the encoder's file of weights and `names` filled the template, row by row; None and ()
    where a file does not say.
    """

    encoder: str
    prompt_template: str
    source: str
    sha256: str
    weights_sha256: str | None = None
    names: tuple[str, ...] = ()


class TextEmbeddingError(ValueError):
    """Text embeddings that cannot be made, written or read as one row for each label."""


def read_text_embedding(path: Path) -> tuple[Tensor, TextProvenance]:
    """Embeddings (32,512) float32 in the order of `labels.LABELS`, with their provenance.

    A file that names its rows may have those of own labels after them (`read_rows`). Raises TextEmbeddingError for
    another shape, non-finite values, an unreadable file, or rows in another order.
    """
    embedding, text = read_features(path)
    count = len(LABELS)
    if len(embedding) < count or (len(embedding) > count and not text.names):
        raise TextEmbeddingError(f"{path.name} holds {tuple(embedding.shape)}; needed: ({count}, {TEXT_CHANNELS}).")
    _check_order(text.names, path.name)
    first = embedding[:count]
    return first, replace(text, sha256=embedding_sha256(first), names=text.names[:count])


def read_rows(path: Path, prompts: Iterable[str]) -> dict[str, Tensor]:
    """Rows (512,) float32 of the prompts that a file names, by prompt. Raises TextEmbeddingError as `read_features`."""
    embedding, text = read_features(path)
    rows = {name.casefold(): row for name, row in zip(text.names, embedding, strict=False)}
    return {prompt: rows[prompt.casefold()] for prompt in prompts if prompt.casefold() in rows}


def read_features(path: Path) -> tuple[Tensor, TextProvenance]:
    """Features (N,512) float32 of any names, with their provenance.

    A bare tensor of 32 rows is taken for the published one; of any other the provenance is unknown. Raises
    TextEmbeddingError for another width, non-finite values, an unreadable file, or other than N names.
    """
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                embedding = file.get_tensor("text_embedding")
                metadata = file.metadata() or {}
        else:
            embedding = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader fails in its own way; one sentence for all
        raise TextEmbeddingError(f"{path.name} is not a readable embedding file: {type(error).__name__}.") from error
    if not isinstance(embedding, Tensor) or embedding.ndim != 2 or embedding.shape[1] != TEXT_CHANNELS:
        shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise TextEmbeddingError(f"{path.name} holds {shape}; needed: (names, {TEXT_CHANNELS}).")
    embedding = embedding.float()
    if not bool(torch.isfinite(embedding).all()):
        raise TextEmbeddingError(f"{path.name} holds values that are not finite.")
    sha256 = embedding_sha256(embedding)
    if path.suffix != ".safetensors" and len(embedding) == len(LABELS):
        return embedding, TextProvenance(PUBLISHED_ENCODER, PUBLISHED_TEMPLATE, PUBLISHED_SOURCE, sha256)
    return embedding, TextProvenance(
        encoder=metadata.get("encoder", "unknown"),
        prompt_template=metadata.get("prompt_template", "unknown"),
        source=metadata.get("source", "unknown"),
        sha256=sha256,
        weights_sha256=metadata.get("weights_sha256"),
        names=_names(metadata["names"], len(embedding), path.name) if "names" in metadata else (),
    )


def write_text_embedding(path: Path, embedding: Tensor, text: TextProvenance) -> None:
    """Writes features (N,512) as safetensors, atomically, with their provenance as metadata.

    Training reads them if they begin with those of the 32 labels. Raises TextEmbeddingError for another suffix, another
    width, a number of names other than N, or values that are not finite.
    """
    if path.suffix != ".safetensors":
        raise TextEmbeddingError(f"{path.name} must end with .safetensors, by which it is known when read.")
    if tuple(embedding.shape) != (len(text.names), TEXT_CHANNELS):
        raise TextEmbeddingError(
            f"Features of shape {tuple(embedding.shape)} for {len(text.names)} names; "
            f"needed: ({len(text.names)}, {TEXT_CHANNELS})."
        )
    if not bool(torch.isfinite(embedding).all()):
        raise TextEmbeddingError(f"{text.encoder} gives values that are not finite; its weights are damaged.")
    metadata = {
        "encoder": text.encoder,
        "prompt_template": text.prompt_template,
        "names": json.dumps(text.names, ensure_ascii=False),
        "source": text.source,
    }
    if text.weights_sha256 is not None:
        metadata["weights_sha256"] = text.weights_sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(save({"text_embedding": embedding.float().contiguous()}, metadata=metadata))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _names(stored: str, rows: int, file_name: str) -> tuple[str, ...]:
    """The names a file was made of, one per row."""
    try:
        names = json.loads(stored)
    except ValueError as error:
        raise TextEmbeddingError(f"The names in {file_name} are not JSON.") from error
    if not isinstance(names, list) or len(names) != rows or not all(isinstance(name, str) for name in names):
        raise TextEmbeddingError(f"The names in {file_name} are not one per row.")
    return tuple(names)


def _check_order(names: tuple[str, ...], file_name: str) -> None:
    """Synonyms of the labels are fine; one label's name in another's row is not. No names say nothing."""
    rows = {label.prompt.casefold(): label for label in LABELS}
    for label, name in zip(LABELS, names, strict=False):
        if rows.get(name.casefold(), label) is not label:
            raise TextEmbeddingError(
                f"Row {label.index} of {file_name} is '{name}', but label {label.index} is '{label.prompt}'."
            )


def whiten(embedding: Tensor, text: TextProvenance) -> tuple[Tensor, TextProvenance]:
    """The embeddings centred and made orthogonal across the labels, each row of norm about 22.

    CLIP's rows are nearly one direction (mean cosine 0.88, left to right kidney 0.99), so heads generated from them
    start out alike and part slowly. This is one fixed linear map: a first layer on the raw rows can express all that
    one on the whitened rows can. It is a preconditioner, not another text branch.
    """
    centred = embedding.double() - embedding.double().mean(dim=0)
    left, singular, right = torch.linalg.svd(centred, full_matrices=False)
    kept = singular > singular[0] * 1e-6
    whitened = (left[:, kept] @ right[kept] * WHITENED_SCALE).float()
    return whitened, replace(text, encoder=text.encoder + WHITENED, sha256=embedding_sha256(whitened))


def whiten_like(rows: Tensor, embedding: Tensor) -> Tensor:
    """Other rows (N,512) under the linear map by which `whiten` whitens `embedding`, float32.

    What of a row lies outside the span of the embedding's rows is lost: training never saw such a direction.
    """
    mean = embedding.double().mean(dim=0)
    _, singular, right = torch.linalg.svd(embedding.double() - mean, full_matrices=False)
    kept = singular > singular[0] * 1e-6
    along = (rows.double() - mean) @ right[kept].T / singular[kept]
    whitened: Tensor = along @ right[kept] * WHITENED_SCALE
    return whitened.float()


def random_text_embedding(seed: int) -> tuple[Tensor, TextProvenance]:
    """Stand-in embeddings for tests and for training without CLIP: Gaussian rows, as distinct as one-hot codes."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(len(LABELS), TEXT_CHANNELS, generator=generator) * 0.4
    return embedding, TextProvenance(
        f"random (seed {seed})", "{}", "drawn by this package", embedding_sha256(embedding)
    )


def embedding_sha256(embedding: Tensor) -> str:
    """SHA-256 of the float32 bytes, row-major."""
    return hashlib.sha256(embedding.float().contiguous().numpy().tobytes()).hexdigest()
