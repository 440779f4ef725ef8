"""Text embeddings of the labels, read from a file: the model's only link to CLIP.

Two layouts: safetensors with a tensor `text_embedding` (C,512) and provenance in its metadata, and a bare torch tensor
(.pth), as published with the paper, whose provenance is then the paper's. Never a pickle with code: weights_only.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
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


@dataclass(frozen=True)
class TextProvenance:
    """Which encoder saw which prompts, where the features came from; `sha256` is of the float32 embedding bytes."""

    encoder: str
    prompt_template: str
    source: str
    sha256: str


class TextEmbeddingError(ValueError):
    """The file does not hold one text embedding for each label."""


def read_text_embedding(path: Path) -> tuple[Tensor, TextProvenance]:
    """Embeddings (32,512) float32 in the order of `labels.LABELS`, with their provenance.

    Raises TextEmbeddingError for another shape, non-finite values or an unreadable file.
    """
    encoder, template, source = PUBLISHED_ENCODER, PUBLISHED_TEMPLATE, PUBLISHED_SOURCE
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                embedding = file.get_tensor("text_embedding")
                metadata = file.metadata() or {}
            encoder = metadata.get("encoder", "unknown")
            template = metadata.get("prompt_template", "unknown")
            source = metadata.get("source", "unknown")
        else:
            embedding = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # every reader fails in its own way; one sentence for all
        raise TextEmbeddingError(f"{path.name} is not a readable embedding file: {type(error).__name__}.") from error
    if not isinstance(embedding, Tensor) or tuple(embedding.shape) != (len(LABELS), TEXT_CHANNELS):
        shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise TextEmbeddingError(f"{path.name} holds {shape}; needed: ({len(LABELS)}, {TEXT_CHANNELS}).")
    embedding = embedding.float()
    if not bool(torch.isfinite(embedding).all()):
        raise TextEmbeddingError(f"{path.name} holds values that are not finite.")
    return embedding, TextProvenance(encoder, template, source, embedding_sha256(embedding))


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
    encoder = f"{text.encoder}, whitened over the labels"
    return whitened, TextProvenance(encoder, text.prompt_template, text.source, embedding_sha256(whitened))


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
