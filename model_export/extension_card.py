"""MODEL_CARD.md of a bundle with an added label: what was added and how, then the card of the bundle before."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from string import Template

from model_export.card import table
from model_export.manifest import JsonObject
from model_export.precisions import FP32

_TRAINED = (
    "The label was part of the training of the checkpoint. How well it is found is not known unless the evaluation "
    "below says so."
)
_UNTRAINED = (
    "**Untested: no voxel of this label was seen in training.** Its row of the head follows from its text alone. The "
    "mask is whatever the controller makes of the words; it may be empty, or another structure."
)
_KEPT = (
    "The other labels are untouched: their rows of the head, thresholds and rules are those of $base_id, bit for bit."
)
_REPLACED = (
    "**The heads of the other labels were replaced too**, by those of the checkpoint, with its thresholds. On the "
    "sample window their logits differ by up to $moved of the largest from those of $base_id."
)
_NOT_EVALUATED = "Not evaluated: no evaluation was given when the label was added."


@dataclass(frozen=True)
class ExtensionFacts:
    """What the card says; `entry`, `addition` and `text` as the manifest has them, `base` the manifest before.

    `errors` is by engine; `moved` is how far the old labels' logits are from the base's on its sample, relatively.
    `training` is the provenance of replaced heads.
    """

    name: str
    version: str
    description: str
    entry: JsonObject
    addition: JsonObject
    text: JsonObject
    base: JsonObject
    base_card: str
    evaluation: str | None
    errors: Mapping[str, float]
    moved: float
    training: JsonObject | None


def render_extension_card(facts: ExtensionFacts) -> str:
    """The card as Markdown; the same facts give the same text."""
    template = resources.files("model_export").joinpath("extension_card.md.tpl").read_text(encoding="utf-8")
    base_id = f"{facts.base['name']} {facts.base['version']}"
    kept = facts.training is None
    heads = Template(_KEPT if kept else _REPLACED).substitute(base_id=base_id, moved=f"{facts.moved:.0e}")
    text = facts.addition["text"]
    return (
        Template(template).substitute(
            name=facts.name,
            version=facts.version,
            intended_use=facts.base["intended_use"],
            description=facts.description,
            base_id=base_id,
            backbone_sha256=facts.base["files"][FP32.file]["sha256"],
            label=_label_table(facts.entry),
            trained=_TRAINED if facts.addition["trained"] else _UNTRAINED,
            heads=heads,
            prompt=facts.text["prompt_template"].replace("{}", text["name"]),
            encoder=facts.text["encoder"],
            source=text["source"],
            embedding_sha256=text["embedding_sha256"],
            checkpoint_sha256=facts.addition["checkpoint_sha256"],
            errors=", ".join(f"{engine} {error:.0e}" for engine, error in facts.errors.items()),
            evaluation=(facts.evaluation or _NOT_EVALUATED).strip(),
            training="" if facts.training is None else _training(facts.training),
            licence=facts.base["licence"],
            of_base=(
                "It holds for the labels there."
                if kept
                else "Its evaluation and thresholds are those of the former heads and do not hold for this bundle."
            ),
            base_card=_demoted(facts.base_card).strip(),
        )
        + "\n"
    )


def _label_table(entry: JsonObject) -> str:
    row = (
        str(entry["index"]),
        f"`{entry['name']}`",
        entry["kind"],
        ", ".join(entry["hosts"]),
        entry["type"]["meaning"],
        entry["type"]["value"],
        f"{entry['threshold']:g}",
    )
    return table(("index", "label", "kind", "in", "type", "SNOMED CT", "threshold"), [row])


def _training(training: JsonObject) -> str:
    rows = [(key, str(value)) for key, value in training.items()]
    return f"## Training of the heads\n\n{table(('', ''), rows)}\n\n"


def _demoted(card: str) -> str:
    """The card with its headings one level lower."""
    return re.sub(r"^(#{1,5}) ", r"#\1 ", card, flags=re.MULTILINE)
