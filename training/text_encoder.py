"""Text encoders: they turn prompts into the features by which the model tells its labels apart.

An encoder is a folder of weights on the user's disk; nothing is looked up or fetched. The paper's is the text half of
CLIP ViT-B/32 (Radford et al. 2021, arXiv 2103.00020), run once, its output not normalised. For another language
model, write a class like `ClipTextEncoder` and name it in `ENCODERS`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from training.networks.universal import TEXT_CHANNELS
from training.prompts import PromptError, Prompts
from training.text import TextEmbeddingError, TextProvenance, embedding_sha256

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # one of these sets

# What decides the numbers. The rest of a config.json is about training, generation and the library's own bookkeeping.
_ARCHITECTURE = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "layer_norm_eps", "max_position_embeddings", "projection_dim", "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
_VIT_SIZES = {768: "B", 1024: "L", 1280: "H"}  # by the width of the image half
_ENDS_AT_HIGHEST = 2  # an `eos_token_id` of older configurations: the prompt ends at its highest token


class TextEncoderError(TextEmbeddingError):
    """There is no text encoder that can be run here, or none that the model can use."""


class TextEncoder(Protocol):
    """A frozen language model.

    `name` is what manifests and model cards say, for example `CLIP ViT-B/32`; `weights_sha256` is of the file of
    weights.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def weights_sha256(self) -> str: ...  # noqa: D102

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Features (N,width) float32 on the CPU, one row per prompt. Raises PromptError for one it cannot read."""
        ...


class ClipTextEncoder:
    """The text half of a CLIP model, from a folder in the layout of the transformers library.

    Needed are `config.json` (of the whole CLIP or of its text half), one of WEIGHTS_FILES and one set of
    TOKENIZER_FILES. Weights are read from safetensors or with torch's `weights_only`: no code in a file runs.
    Raises TextEncoderError for what is missing or does not fit, and if transformers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        config = _read_config(folder)
        weights = _find_weights(folder)
        _check_tokenizer_files(folder)
        config_class, model_class, tokenizer_class = _transformers_classes()
        self.name = _clip_name(config)
        with weights.open("rb") as file:
            self.weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            self._model = model_class(config_class(**_text_config(config))).eval()
        except Exception as error:  # the library checks each value in its own way
            raise TextEncoderError(f"config.json in {folder} does not describe a CLIP text model.") from error
        _fill(self._model, weights)
        self._tokenizer = _read_tokenizer(tokenizer_class, folder, self._model.config)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Projected features (N,width) float32, raw as in the paper; width is 512 for CLIP ViT-B/32.

        Prompts run one by one: without padding, a row depends on its own prompt alone.
        Raises PromptError for a prompt longer than the context (77 tokens) or with a word the tokenizer lacks.
        """
        tokens = [self._tokens(prompt) for prompt in prompts]
        return torch.cat([self._model(input_ids=torch.tensor([row])).text_embeds for row in tokens])

    def _tokens(self, prompt: str) -> list[int]:
        tokens: list[int] = self._tokenizer(prompt, verbose=False)["input_ids"]
        longest = self._model.config.max_position_embeddings
        if len(tokens) > longest:
            raise PromptError(
                f"Prompt '{prompt[:50]}…' has {len(tokens)} tokens with start and end; {self.name} reads {longest}."
            )
        # An unknown word becomes the end token, and CLIP takes its features at the first end token.
        end = self._tokenizer.eos_token_id
        if tokens[-1] != end or tokens.count(end) != 1:
            raise PromptError(f"Prompt '{prompt[:50]}' has a word that the tokenizer of {self.name} lacks.")
        return tokens


#: The kinds that `viscera-train embed --encoder` knows, each opened from a folder that exists.
ENCODERS: dict[str, Callable[[Path], TextEncoder]] = {"clip": ClipTextEncoder}


def open_encoder(kind: str, folder: Path) -> TextEncoder:
    """The encoder in that folder, ready to run. Raises TextEncoderError."""
    if kind not in ENCODERS:
        raise TextEncoderError(f"No text encoder '{kind}'; known: {', '.join(ENCODERS)}.")
    if not folder.is_dir():
        raise TextEncoderError(f"There is no folder {folder}; give the one with the encoder's files.")
    return ENCODERS[kind](folder)


def embed(encoder: TextEncoder, prompts: Prompts, *, source: str) -> tuple[Tensor, TextProvenance]:
    """Features (N,512) float32 of the prompts, row by row, with their provenance.

    `source` says where the weights came from. Raises PromptError for a prompt that the encoder cannot read,
    TextEncoderError for an encoder of another width than the model's 512.
    """
    embedding = encoder.encode(prompts.sentences)
    if embedding.shape[1] != TEXT_CHANNELS:
        raise TextEncoderError(
            f"{encoder.name} gives {embedding.shape[1]} numbers for a prompt; the model's text branch reads "
            f"{TEXT_CHANNELS}, as from CLIP ViT-B/32."
        )
    sha256 = embedding_sha256(embedding)
    return embedding, TextProvenance(
        encoder.name, prompts.template, source, sha256, encoder.weights_sha256, prompts.names
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a CLIP or of the text half of one."""
    path = folder / "config.json"
    if not path.is_file():
        raise TextEncoderError(f"{folder} has no config.json; it is not a model in the layout of transformers.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TextEncoderError(f"config.json in {folder} is not JSON.") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in {"clip", "clip_text_model"}:
        raise TextEncoderError(f"config.json in {folder} is of model type '{kind}'; a CLIP text model is needed.")
    return dict(config)


def _half(config: dict[str, Any], key: str) -> dict[str, Any]:
    half = config.get(key)
    return half if isinstance(half, dict) else {}  # absent: all values are those of ViT-B/32


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that decide the numbers, of either form of config.json."""
    if config["model_type"] == "clip_text_model":
        text = config
    else:  # the whole CLIP, which projects both halves to a width of its own
        text = _half(config, "text_config") | {"projection_dim": config.get("projection_dim", TEXT_CHANNELS)}
    return {key: value for key, value in text.items() if key in _ARCHITECTURE}


def _clip_name(config: dict[str, Any]) -> str:
    """By the image half, as CLIP models are called; without it by what is known, as several share a text half."""
    if config["model_type"] == "clip":
        vision = _half(config, "vision_config")
        width, patch = vision.get("hidden_size", 768), vision.get("patch_size", 32)
        return f"CLIP ViT-{_VIT_SIZES.get(width, width)}/{patch}"
    text = _text_config(config)
    return f"CLIP text model ({text.get('num_hidden_layers', 12)} layers, width {text.get('hidden_size', 512)})"


def _find_weights(folder: Path) -> Path:
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise TextEncoderError(f"{folder} holds no weights; needed: {' or '.join(WEIGHTS_FILES)}.")


def _check_tokenizer_files(folder: Path) -> None:
    # Without files the library makes a tokenizer of two words and says nothing.
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        known = " or ".join(" and ".join(names) for names in TOKENIZER_FILES)
        raise TextEncoderError(f"{folder} holds no tokenizer; needed: {known}.")


def _transformers_classes() -> tuple[Any, Any, Any]:
    """Configuration, model and tokenizer, imported when an encoder is opened: that takes seconds."""
    try:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer
    except Exception as error:  # a part of it that does not fit torch fails in its own way
        if isinstance(error, ModuleNotFoundError) and error.name == "transformers":
            raise TextEncoderError(
                "transformers, which runs the text encoder, is not installed: pip install 'viscera[text]'."
            ) from error
        raise TextEncoderError(
            f"transformers cannot be imported: {type(error).__name__}. A torchvision that does not fit torch is a "
            "common cause; none is needed here."
        ) from error
    return CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer


def _fill(model: Any, weights: Path) -> None:  # noqa: ANN401 - the library publishes no types
    """Every tensor of the model from the file, none else.

    Not by the library's `from_pretrained`: what a file lacks it draws at random, and only logs it.
    """
    state = _read_text_half(weights)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise TextEncoderError(
            f"{weights.name} is not the CLIP text model of its config.json: {len(wrong)} tensors are missing, of "
            f"another shape or too many, the first {wrong[0]}."
        )
    model.load_state_dict(state)


def _read_text_half(weights: Path) -> dict[str, Tensor]:
    """The tensors of the text half by name, of a file that may hold both halves."""
    try:
        if weights.suffix == ".safetensors":
            with safe_open(weights, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if _is_of_text_half(name)}  # noqa: SIM118
        state = torch.load(weights, map_location="cpu", weights_only=True)
        return {name: tensor.detach() for name, tensor in state.items() if _is_of_text_half(name)}
    except Exception as error:  # every reader fails in its own way; one sentence for all
        raise TextEncoderError(f"{weights.name} is not a readable file of weights: {type(error).__name__}.") from error


def _is_of_text_half(name: str) -> bool:
    # `position_ids` is 0, 1, 2, ...: older files keep it among the weights.
    return name.startswith(("text_model.", "text_projection.")) and not name.endswith(".position_ids")


def _read_tokenizer(tokenizer_class: Any, folder: Path, config: Any) -> Any:  # noqa: ANN401 - untyped
    """The tokenizer of the folder. Raises TextEncoderError if it cannot be read or is another model's."""
    try:
        tokenizer = tokenizer_class.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # as above
        raise TextEncoderError(f"The tokenizer in {folder} cannot be read: {type(error).__name__}.") from error
    words = len(tokenizer)
    end = words - 1 if config.eos_token_id == _ENDS_AT_HIGHEST else config.eos_token_id
    if words > config.vocab_size or tokenizer.eos_token_id != end:
        raise TextEncoderError(
            f"The tokenizer in {folder} is not the model's: {words} words, the end is {tokenizer.eos_token_id}; "
            f"the model knows {config.vocab_size} words, and its end is {end}."
        )
    return tokenizer
