"""Text embeddings from their two layouts, and what is refused."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support.pickled_code import Payload
from tests.support.reading import SHARED_DATA
from training.labels import BY_NAME, LABELS
from training.text import (
    PUBLISHED_ENCODER,
    PUBLISHED_SOURCE,
    PUBLISHED_TEMPLATE,
    TextEmbeddingError,
    TextProvenance,
    embedding_sha256,
    random_text_embedding,
    read_features,
    read_text_embedding,
    whiten,
    whiten_like,
    write_text_embedding,
)

NAMES = tuple(label.prompt for label in LABELS)
PUBLISHED = SHARED_DATA / "clip_text_embeddings" / "txt_encoding.pth"


@pytest.fixture
def embedding() -> torch.Tensor:
    return torch.arange(32 * 512, dtype=torch.float32).reshape(32, 512) / 100


def test_bare_tensor_has_the_papers_provenance(embedding: torch.Tensor, tmp_path: Path) -> None:
    torch.save(embedding.half(), tmp_path / "text.pth")
    read, text = read_text_embedding(tmp_path / "text.pth")
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, embedding.half().float(), rtol=0, atol=0)
    assert (text.encoder, text.prompt_template, text.source) == (
        PUBLISHED_ENCODER,
        PUBLISHED_TEMPLATE,
        PUBLISHED_SOURCE,
    )


def test_safetensors_brings_its_own(embedding: torch.Tensor, tmp_path: Path) -> None:
    metadata = {"encoder": "CLIP ViT-L/14", "prompt_template": "A CT of the {}.", "source": "our own"}
    save_file({"text_embedding": embedding}, tmp_path / "text.safetensors", metadata=metadata)
    read, text = read_text_embedding(tmp_path / "text.safetensors")
    torch.testing.assert_close(read, embedding, rtol=0, atol=0)
    assert (text.encoder, text.prompt_template, text.source) == ("CLIP ViT-L/14", "A CT of the {}.", "our own")


def test_safetensors_without_metadata_is_of_unknown_origin(embedding: torch.Tensor, tmp_path: Path) -> None:
    save_file({"text_embedding": embedding}, tmp_path / "text.safetensors")
    _, text = read_text_embedding(tmp_path / "text.safetensors")
    assert (text.encoder, text.prompt_template, text.source) == ("unknown", "unknown", "unknown")
    assert (text.weights_sha256, text.names) == (None, ())


def test_metadata_of_a_written_file_is_plain(embedding: torch.Tensor, tmp_path: Path) -> None:
    text = TextProvenance("CLIP ViT-B/32", "A CT of {}", "our own", "", "ab" * 32, ("spleen", "milz\u00e4"))
    write_text_embedding(tmp_path / "two.safetensors", embedding[:2].double(), text)
    with safe_open(tmp_path / "two.safetensors", framework="pt") as file:
        assert file.metadata() == {
            "encoder": "CLIP ViT-B/32", "weights_sha256": "ab" * 32, "prompt_template": "A CT of {}",
            "names": '["spleen", "milz\u00e4"]', "source": "our own",
        }  # fmt: skip
        stored = file.get_tensor("text_embedding")
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, embedding[:2], rtol=0, atol=0)
    with pytest.raises(TextEmbeddingError, match=r"holds \(2, 512\); needed: \(32, 512\)"):
        read_text_embedding(tmp_path / "two.safetensors")


def test_weights_that_are_not_known_stay_unknown(embedding: torch.Tensor, tmp_path: Path) -> None:
    text = TextProvenance("one-hot", "{}", "our own", embedding_sha256(embedding), None, NAMES)
    write_text_embedding(tmp_path / "text.safetensors", embedding, text)
    assert read_text_embedding(tmp_path / "text.safetensors")[1] == text


@pytest.mark.parametrize(
    ("name", "shape", "value", "sentence"),
    [
        ("text.pth", (32, 512), 0.0, "text.pth must end with .safetensors, by which it is known when read."),
        ("a.safetensors", (31, 512), 0.0, "Features of shape (31, 512) for 32 names; needed: (32, 512)."),
        ("a.safetensors", (32, 768), 0.0, "Features of shape (32, 768) for 32 names; needed: (32, 512)."),
        ("a.safetensors", (32, 512), float("nan"), "CLIP gives values that are not finite; its weights are damaged."),
    ],
)
def test_what_training_could_not_read_is_not_written(
    name: str, shape: tuple[int, ...], value: float, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(TextEmbeddingError) as refused:
        write_text_embedding(tmp_path / name, torch.full(shape, value), TextProvenance("CLIP", "{}", "", "", "", NAMES))
    assert str(refused.value) == sentence
    assert list(tmp_path.iterdir()) == []


def test_rows_of_other_labels_are_refused(embedding: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    swapped = (*NAMES[:5], NAMES[6], NAMES[5].lower(), *NAMES[7:])
    write_text_embedding(path, embedding, TextProvenance("CLIP", "{}", "", "", "", swapped))
    with pytest.raises(TextEmbeddingError) as refused:
        read_text_embedding(path)
    assert str(refused.value) == "Row 6 of text.safetensors is 'Stomach', but label 6 is 'Liver'."


def test_synonyms_of_labels_are_read(embedding: torch.Tensor, tmp_path: Path) -> None:
    names = ("Milz", *NAMES[1:])
    path = tmp_path / "text.safetensors"
    write_text_embedding(path, embedding, TextProvenance("CLIP", "{}", "", "", "", names))
    assert read_text_embedding(path)[1].names == names


@pytest.mark.parametrize("names", ["[", '["Spleen"]', "3", json.dumps([*range(32)])])
def test_names_that_are_not_one_per_label_are_refused(names: str, embedding: torch.Tensor, tmp_path: Path) -> None:
    save_file({"text_embedding": embedding}, tmp_path / "text.safetensors", metadata={"names": names})
    with pytest.raises(TextEmbeddingError, match=r"^The names in text\.safetensors are not "):
        read_text_embedding(tmp_path / "text.safetensors")


def test_hash_is_of_the_float32_bytes(embedding: torch.Tensor, tmp_path: Path) -> None:
    torch.save(embedding, tmp_path / "text.pth")
    _, text = read_text_embedding(tmp_path / "text.pth")
    values = np.arange(32 * 512, dtype="<f4").reshape(32, 512) / np.float32(100)
    assert text.sha256 == hashlib.sha256(values.tobytes()).hexdigest()
    embedding[31, 511] += 1
    assert embedding_sha256(embedding) != text.sha256


@pytest.mark.parametrize("shape", [(31, 512), (32, 256), (512, 32), (32, 512, 1)])
def test_wrong_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save(torch.zeros(shape), tmp_path / "text.pth")
    with pytest.raises(TextEmbeddingError) as refused:
        read_text_embedding(tmp_path / "text.pth")
    needed = "(32, 512)" if shape[1:] == (512,) else "(names, 512)"
    assert str(refused.value) == f"text.pth holds {shape}; needed: {needed}."


def test_something_else_than_a_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"text": torch.zeros(32, 512)}, tmp_path / "text.pth")
    with pytest.raises(TextEmbeddingError, match="holds dict"):
        read_text_embedding(tmp_path / "text.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(embedding: torch.Tensor, value: float, tmp_path: Path) -> None:
    embedding[4, 5] = value
    torch.save(embedding, tmp_path / "text.pth")
    with pytest.raises(TextEmbeddingError, match="not finite"):
        read_text_embedding(tmp_path / "text.pth")


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "broken.pth", "broken.safetensors"])
def test_unreadable_files_are_refused(name: str, tmp_path: Path) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"no embedding")
    with pytest.raises(TextEmbeddingError, match=f"{name} is not a readable embedding file"):
        read_text_embedding(tmp_path / name)


def test_safetensors_with_another_tensor_is_refused(embedding: torch.Tensor, tmp_path: Path) -> None:
    save_file({"weights": embedding}, tmp_path / "text.safetensors")
    with pytest.raises(TextEmbeddingError):
        read_text_embedding(tmp_path / "text.safetensors")


@pytest.mark.parametrize("layout", ["bare pickle", "torch file"])
def test_code_in_a_pickle_does_not_run(layout: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "text.pth"
    if layout == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(mark), protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(Payload(mark), path)
        torch.load(path, weights_only=False)
    mark.rmdir()  # the payload works: it ran, and made its mark

    with pytest.raises(TextEmbeddingError):
        read_text_embedding(path)
    assert not mark.exists()


def test_random_rows_follow_their_seed() -> None:
    first, text = random_text_embedding(5)
    again, _ = random_text_embedding(5)
    other, _ = random_text_embedding(6)
    assert first.shape == (32, 512)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first != other).any()
    assert text.encoder == "random (seed 5)"
    assert text.sha256 == embedding_sha256(first)
    rows = torch.nn.functional.normalize(first)
    assert (rows @ rows.T - torch.eye(32)).abs().max() < 0.25


@pytest.mark.skipif(not PUBLISHED.exists(), reason="absent: ../shared/data/clip_text_embeddings/txt_encoding.pth")
def test_published_rows_are_in_the_order_of_the_labels() -> None:
    embedding, text = read_text_embedding(PUBLISHED)
    assert text.encoder == "CLIP ViT-B/32"
    norms = embedding.norm(dim=1)
    assert 8.0 < norms.min() < norms.max() < 9.7
    similarity = torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(embedding).T
    similarity.fill_diagonal_(0)
    for name, nearest in {
        "kidney_right": "kidney_left", "lung_left": "lung_right", "adrenal_gland_left": "adrenal_gland_right",
        "femur_head_right": "femur_head_left", "liver_tumor": "liver", "colon_tumor": "colon",
    }.items():  # fmt: skip
        assert similarity[BY_NAME[name].channel].argmax() == BY_NAME[nearest].channel, name


def test_whitening_keeps_the_rest_of_the_provenance() -> None:
    text = TextProvenance("CLIP", "a {}", "our own", "", "ab" * 32, NAMES)
    whitened, after = whiten(random_text_embedding(3)[0], text)
    assert after == TextProvenance(
        "CLIP, whitened over the labels", "a {}", "our own", embedding_sha256(whitened), "ab" * 32, NAMES
    )


def test_whitened_rows_are_orthogonal_and_a_linear_image_of_the_raw_ones():
    embedding, text = random_text_embedding(3)
    nearly_alike = embedding * 0.05 + embedding[0]  # as CLIP's rows: one direction and small differences
    whitened, provenance = whiten(nearly_alike, text)
    products = whitened.double() @ whitened.double().T
    # Centring 32 rows costs one dimension: off the diagonal every product is -1/31 of the diagonal, not 0.
    diagonal = products.diagonal()
    assert torch.allclose(diagonal, diagonal.mean().expand(32), rtol=1e-4)
    off_diagonal = products[~torch.eye(32, dtype=torch.bool)]
    assert torch.allclose(off_diagonal, -diagonal.mean().expand(32 * 31) / 31, rtol=1e-3)
    centred = (nearly_alike - nearly_alike.mean(dim=0)).double()
    linear_map = torch.linalg.lstsq(centred, whitened.double(), driver="gelsd").solution
    assert torch.allclose(centred @ linear_map, whitened.double(), atol=1e-4)
    assert "whitened" in provenance.encoder
    assert provenance.sha256 == embedding_sha256(whitened) != text.sha256


def test_other_rows_are_whitened_by_the_same_linear_map():
    """A mean of two rows becomes the mean of their whitened rows; what is orthogonal to all rows is lost."""
    embedding, text = random_text_embedding(3)
    whitened, _ = whiten(embedding, text)
    torch.testing.assert_close(whiten_like(embedding, embedding), whitened, rtol=0, atol=1e-4)
    between = (embedding[4:5] + embedding[9:10]) / 2
    _, _, right = torch.linalg.svd(embedding, full_matrices=True)
    beside = between + 3.0 * right[-1]
    for row in (between, beside):
        torch.testing.assert_close(whiten_like(row, embedding), (whitened[4:5] + whitened[9:10]) / 2, rtol=0, atol=1e-3)


def test_features_of_any_names_are_read(embedding: torch.Tensor, tmp_path: Path) -> None:
    given = TextProvenance("CLIP", "a {}", "our own", "", "ab" * 32, ("Uterus", "Milz"))
    write_text_embedding(tmp_path / "two.safetensors", embedding[:2], given)
    rows, text = read_features(tmp_path / "two.safetensors")
    torch.testing.assert_close(rows, embedding[:2], rtol=0, atol=0)
    assert (text.encoder, text.weights_sha256, text.names) == ("CLIP", "ab" * 32, ("Uterus", "Milz"))
    torch.save(embedding[:2], tmp_path / "two.pth")
    assert read_features(tmp_path / "two.pth")[1].encoder == "unknown"
    torch.save(embedding, tmp_path / "all.pth")
    assert read_features(tmp_path / "all.pth")[1].encoder == "CLIP ViT-B/32"
