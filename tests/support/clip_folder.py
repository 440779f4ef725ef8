"""A CLIP text model of a few thousand random weights, in the layout of the transformers library."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

# Every letter alone and at the end of a word (`</w>`), and one merge: "liv" is three tokens, "li" is one.
ALPHABET = [chr(code) for code in range(33, 127)]
MERGED = ["li"]
VOCABULARY = [*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET), *MERGED, "<|startoftext|>", "<|endoftext|>"]
START, END = len(VOCABULARY) - 2, len(VOCABULARY) - 1

ARCHITECTURE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "projection_dim": 512,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": END,
}


def write_clip_folder(folder: Path, *, seed: int = 0, **architecture: Any) -> Path:
    """Config, weights and tokenizer; `architecture` replaces keys of ARCHITECTURE. Returns the folder."""
    folder.mkdir(parents=True)
    keys = ARCHITECTURE | architecture
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_text_model", **keys}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModelWithProjection(CLIPTextConfig(**keys))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\nl i\n")
    return folder


def ids_by_hand(prompt: str) -> list[int]:
    """Token ids of a prompt of letters and full stops: start, letters, end, with "li" as one."""
    ids = [START]
    for word in prompt.lower().replace(".", " .").split():
        letters = [*word[:-1], f"{word[-1]}</w>"]
        while "l" in letters and letters[letters.index("l") + 1 :][:1] == ["i"]:
            at = letters.index("l")
            letters[at : at + 2] = ["li"]
        ids += [VOCABULARY.index(letter) for letter in letters]
    return [*ids, END]
