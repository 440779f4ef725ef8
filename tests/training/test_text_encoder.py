"""CLIP text features from a folder on the disk: equal to the library's own, and what is refused."""

import hashlib
import json
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from tests.support.clip_folder import ARCHITECTURE, END, VOCABULARY, ids_by_hand, write_clip_folder
from tests.support.pickled_code import Payload
from training.labels import LABELS
from training.prompts import PromptError, Prompts
from training.text import (
    PUBLISHED_TEMPLATE,
    TextProvenance,
    embedding_sha256,
    read_text_embedding,
    write_text_embedding,
)
from training.text_encoder import ClipTextEncoder, TextEncoderError, embed, open_encoder

OF_THE_LABELS = Prompts(PUBLISHED_TEMPLATE, tuple(label.prompt for label in LABELS))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared; a test that changes it works in a copy."""
    return write_clip_folder(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="session")
def encoder(clip_folder: Path) -> ClipTextEncoder:
    return ClipTextEncoder(clip_folder)


@pytest.fixture
def own_folder(clip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip_folder, tmp_path / "tiny-clip"))


def change_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def refusal(folder: Path) -> str:
    with pytest.raises(TextEncoderError) as refused:
        open_encoder("clip", folder)
    return str(refused.value).replace(str(folder), "FOLDER")


# Features


def test_features_are_those_of_the_library(encoder: ClipTextEncoder, clip_folder: Path) -> None:
    """One padded batch of ids made by hand, through the library's own way of loading."""
    sentences = ["A computerized tomography of a Liver", "Liliput.", "a"]
    rows = [ids_by_hand(sentence) for sentence in sentences]
    longest = max(map(len, rows))
    batch = torch.tensor([row + [END] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    model = CLIPTextModelWithProjection.from_pretrained(str(clip_folder), local_files_only=True)
    with torch.no_grad():
        expected = model(input_ids=batch, attention_mask=mask).text_embeds
    features = encoder.encode(sentences)
    assert features.dtype == torch.float32
    assert features.shape == (3, 512)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    assert (features.norm(dim=1) - 1).abs().min() > 0.01  # not normalised
    assert (features[0] - features[1]).abs().max() > 0.01


def test_a_row_depends_on_its_own_prompt_alone(encoder: ClipTextEncoder) -> None:
    alone = encoder.encode(["a liver"])
    among = encoder.encode(["a much longer prompt of a spleen", "a liver", "a"])
    torch.testing.assert_close(among[1:2], alone, rtol=0, atol=0)


def test_features_can_be_trained_on(encoder: ClipTextEncoder) -> None:
    layer = torch.nn.Linear(512, 1)
    layer(encoder.encode(["a liver"])).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("form", ["both halves", "torch file", "half precision", "older end token"])
def test_other_forms_of_the_same_model_give_the_same_features(
    form: str, own_folder: Path, encoder: ClipTextEncoder
) -> None:
    state = load_file(own_folder / "model.safetensors")
    tolerance = 0.0
    if form == "both halves":
        state |= {"vision_model.post_layernorm.weight": torch.ones(3), "logit_scale": torch.tensor(4.6)}
        state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        text = ARCHITECTURE | {"projection_dim": 64, "torch_dtype": "float16", "num_beams": 1}  # the outer one counts
        (own_folder / "config.json").write_text(
            json.dumps({"model_type": "clip", "projection_dim": 512, "text_config": text})
        )
        save_file(state, own_folder / "model.safetensors")
    elif form == "torch file":
        (own_folder / "model.safetensors").unlink()
        torch.save(state, own_folder / "pytorch_model.bin")
    elif form == "half precision":
        save_file({name: tensor.half() for name, tensor in state.items()}, own_folder / "model.safetensors")
        tolerance = 1e-2
    else:
        change_config(own_folder, eos_token_id=2)
    other = ClipTextEncoder(own_folder).encode(["a liver", "spleen"])
    assert other.dtype == torch.float32
    torch.testing.assert_close(other, encoder.encode(["a liver", "spleen"]), rtol=tolerance, atol=tolerance)


def test_works_without_a_network(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts: list[object] = []

    def refuse(*address: object) -> None:
        attempts.append(address)
        raise OSError("There is no network in this test.")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert ClipTextEncoder(clip_folder).encode(["a liver"]).shape == (1, 512)
    assert attempts == []
    assert capsys.readouterr() == ("", "")  # no progress bar, no report, no warning


# Provenance and file


def test_file_brings_features_and_provenance_back(encoder: ClipTextEncoder, clip_folder: Path, tmp_path: Path) -> None:
    embedding, text = embed(encoder, OF_THE_LABELS, source="made for this test")
    assert text == TextProvenance(
        encoder="CLIP text model (2 layers, width 8)",
        prompt_template="A computerized tomography of a {}",
        source="made for this test",
        sha256=hashlib.sha256(embedding.numpy().tobytes()).hexdigest(),
        weights_sha256=hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest(),
        names=tuple(label.prompt for label in LABELS),
    )
    write_text_embedding(tmp_path / "new" / "text.safetensors", embedding, text)
    read, read_text = read_text_embedding(tmp_path / "new" / "text.safetensors")
    torch.testing.assert_close(read, embedding, rtol=0, atol=0)
    assert read_text == text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["text.safetensors"]


def test_rows_are_in_the_order_of_the_names(encoder: ClipTextEncoder) -> None:
    embedding, _ = embed(encoder, Prompts("a {}.", ("spleen", "liver")), source="")
    torch.testing.assert_close(embedding, encoder.encode(["a spleen.", "a liver."]), rtol=0, atol=0)


def test_other_weights_have_another_hash_and_other_features(encoder: ClipTextEncoder, own_folder: Path) -> None:
    state = load_file(own_folder / "model.safetensors")
    state["text_projection.weight"][0, 0] += 1
    save_file(state, own_folder / "model.safetensors")
    other = ClipTextEncoder(own_folder)
    assert other.weights_sha256 != encoder.weights_sha256
    differs = (other.encode(["a"]) != encoder.encode(["a"])).squeeze()
    assert differs.nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize(
    ("vision", "name"),
    [
        ({"hidden_size": 768, "patch_size": 32}, "CLIP ViT-B/32"),
        ({}, "CLIP ViT-B/32"),  # a configuration saved without what is the library's default
        ({"hidden_size": 768, "patch_size": 16}, "CLIP ViT-B/16"),
        ({"hidden_size": 1024, "patch_size": 14}, "CLIP ViT-L/14"),
    ],
)
def test_a_whole_clip_is_named_by_its_image_half(vision: dict[str, int], name: str, own_folder: Path) -> None:
    config = {"model_type": "clip", "text_config": ARCHITECTURE, "vision_config": vision}
    (own_folder / "config.json").write_text(json.dumps(config))
    assert ClipTextEncoder(own_folder).name == name


class WideEncoder:
    """Another language model, of 768 numbers per prompt."""

    name = "BioBERT"
    weights_sha256 = "0" * 64

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 768)


def test_an_encoder_of_another_width_is_refused() -> None:
    with pytest.raises(TextEncoderError) as refused:
        embed(WideEncoder(), Prompts("{}", ("liver",)), source="")
    assert str(refused.value) == (
        "BioBERT gives 768 numbers for a prompt; the model's text branch reads 512, as from CLIP ViT-B/32."
    )


def test_hash_of_the_features_is_of_what_the_encoder_gave(encoder: ClipTextEncoder) -> None:
    embedding, text = embed(encoder, Prompts("{}", ("liver",)), source="")
    assert text.sha256 == embedding_sha256(embedding)


# Prompts that the encoder cannot read


def test_the_longest_prompt_has_77_tokens(encoder: ClipTextEncoder) -> None:
    assert encoder.encode(["a " * 75]).shape == (1, 512)  # and start and end
    with pytest.raises(PromptError) as refused:
        encoder.encode(["b", "a " * 76])
    assert str(refused.value) == (
        f"Prompt '{('a ' * 76)[:50]}…' has 78 tokens with start and end; CLIP text model (2 layers, width 8) reads 77."
    )


@pytest.mark.parametrize("name", ["k\u00e9", "the <|endoftext|> of it", "<|endoftext|>"])
def test_a_word_that_would_end_the_prompt_is_refused(name: str, encoder: ClipTextEncoder) -> None:
    """This tokenizer has no accents; an unknown word is read as the end."""
    with pytest.raises(PromptError, match="has a word that the tokenizer of CLIP text model"):
        encoder.encode([f"a {name} in a ct"])


# Folders that hold no encoder


def test_missing_folder_and_unknown_kind_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    assert refusal(tmp_path / "absent") == "There is no folder FOLDER; give the one with the encoder's files."
    with pytest.raises(TextEncoderError, match=r"No text encoder 'bert'; known: clip\."):
        open_encoder("bert", clip_folder)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("config.json", "FOLDER has no config.json; it is not a model in the layout of transformers."),
        ("model.safetensors", "FOLDER holds no weights; needed: model.safetensors or pytorch_model.bin."),
        ("vocab.json", "FOLDER holds no tokenizer; needed: tokenizer.json or vocab.json and merges.txt."),
        ("merges.txt", "FOLDER holds no tokenizer; needed: tokenizer.json or vocab.json and merges.txt."),
    ],
)
def test_missing_files_are_named(file: str, sentence: str, own_folder: Path) -> None:
    (own_folder / file).unlink()
    assert refusal(own_folder) == sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "config.json in FOLDER is not JSON."),
        ("[]", "config.json in FOLDER is of model type 'None'; a CLIP text model is needed."),
        ('{"model_type": "bert"}', "config.json in FOLDER is of model type 'bert'; a CLIP text model is needed."),
        (
            '{"model_type": "clip", "text_config": {"hidden_size": "wide"}}',
            "config.json in FOLDER does not describe a CLIP text model.",
        ),
        (
            '{"model_type": "clip_text_model", "hidden_act": "none"}',
            "config.json in FOLDER does not describe a CLIP text model.",
        ),
    ],
)
def test_configurations_of_something_else_are_refused(content: str, sentence: str, own_folder: Path) -> None:
    (own_folder / "config.json").write_text(content)
    assert refusal(own_folder) == sentence


@pytest.mark.parametrize("change", ["missing", "another shape", "too many", "image half only"])
def test_weights_are_never_completed_at_random(change: str, own_folder: Path) -> None:
    state = load_file(own_folder / "model.safetensors")
    tensors, first = 1, "text_projection.weight"
    if change == "missing":
        del state[first]
    elif change == "another shape":
        state[first] = torch.zeros(256, 8)
    elif change == "too many":
        first = "text_projection.bias"
        state[first] = torch.zeros(512)
    else:
        tensors, first = len(state), min(state)
        state = {"vision_model.post_layernorm.weight": torch.ones(3)}
    save_file(state, own_folder / "model.safetensors")
    assert refusal(own_folder) == (
        f"model.safetensors is not the CLIP text model of its config.json: {tensors} tensors are missing, of another "
        f"shape or too many, the first {first}."
    )


def test_code_in_a_file_of_weights_does_not_run(own_folder: Path, tmp_path: Path) -> None:
    mark, weights = tmp_path / "it ran", own_folder / "pytorch_model.bin"
    torch.save({"text_model.weight": Payload(mark)}, weights)
    torch.load(weights, weights_only=False)
    mark.rmdir()  # the payload works: it ran, and made its mark
    (own_folder / "model.safetensors").unlink()
    assert refusal(own_folder) == "pytorch_model.bin is not a readable file of weights: UnpicklingError."
    assert not mark.exists()


def test_broken_weights_are_refused(own_folder: Path) -> None:
    (own_folder / "model.safetensors").write_bytes(b"no weights")
    assert refusal(own_folder) == "model.safetensors is not a readable file of weights: SafetensorError."


@pytest.mark.parametrize(
    ("vocabulary", "words", "end"),
    [
        ([*VOCABULARY, "spare"], 192, 190),  # one word more than the model has rows for
        ([*VOCABULARY[:-2], VOCABULARY[-1], VOCABULARY[-2]], 191, 189),  # start and end exchanged
    ],
)
def test_another_models_tokenizer_is_refused(vocabulary: list[str], words: int, end: int, own_folder: Path) -> None:
    (own_folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    assert refusal(own_folder) == (
        f"The tokenizer in FOLDER is not the model's: {words} words, the end is {end}; "
        "the model knows 191 words, and its end is 190."
    )


def test_broken_tokenizer_is_refused(own_folder: Path) -> None:
    (own_folder / "vocab.json").write_text("no words")
    assert refusal(own_folder).startswith("The tokenizer in FOLDER cannot be read: ")


def test_missing_library_is_named_with_its_extra(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert refusal(clip_folder) == (
        "transformers, which runs the text encoder, is not installed: pip install 'viscera[text]'."
    )


def test_library_that_does_not_fit_is_told_apart(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "transformers", Broken())
    assert refusal(clip_folder).startswith("transformers cannot be imported: RuntimeError.")
