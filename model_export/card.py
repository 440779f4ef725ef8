"""MODEL_CARD.md: what a reader must know before using a bundle. The text around the numbers is `model_card.md.tpl`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from model_export.manifest import JsonObject, exported_parameters
from model_export.parity import EngineParity, PrecisionParity, dice_text
from training.checkpoint import NOT_CALIBRATED, Calibration, Checkpoint
from training.labels import BY_NAME

INTENDED_USE = "Research only. Not a medical device: not for diagnosis, treatment or any other clinical decision."
_SHORT_SCANS = "go on for {planes} planes below and above, copies of the first and the last one"
_NO_CONTINUATION = "end in background"
NOT_EVALUATED = "Not evaluated: no evaluation was given at export."

_PHANTOM_NOTE = """\
The weights were {trained_on}, for demonstration and tests. Results on phantoms say
that the software works; they say nothing about how well the method does on patients."""
_PHANTOM_LIMITS = """\
- Real anatomy, disease, contrast timing and artefacts differ from the phantoms: on real CT expect missed organs, false
  lesions and rough borders. Do not report figures of this bundle as those of the Universal Model."""
_CALIBRATED = """\
- Chosen on other cases of the same kind: the factor of all logits, {scale:g}, by the likelihood of their voxels
  (temperature scaling); the threshold of a lesion by best Dice; how certain the network must be somewhere in a lesion,
  and how large the lesion must be, so that most are found at a fixed number of false ones.
- Lesions that are dropped for their size: {dropped}.
- The other post-processing rules come from the reference implementation."""
_NOT_CALIBRATED = """\
- Thresholds and post-processing rules come from the reference implementation; they were not tuned for this model."""
_UNSTEADY = """\
Not compared on: {windows}. With these weights torch's own logits on such a window are rounding (float32 against
float64), so engines cannot agree on them. A scan has such windows where there is nothing but air."""
_OTHER_NOTE = "The exporter knows no more about the data than the line above, which comes from the checkpoint."
_OTHER_LIMITS = "- Performance outside the training data's scanners, protocols and patients is unknown."


@dataclass(frozen=True)
class CardFacts:
    """What the card says beyond the checkpoint itself; `evaluation` is Markdown."""

    name: str
    version: str
    description: str
    intended_use: str
    licence: str
    trained_on: str
    evaluation: str | None
    training: JsonObject
    parities: Sequence[PrecisionParity]


def on_phantoms(trained_on: str) -> bool:
    """Whether the data, in the words of the checkpoint, are phantoms."""
    return "phantom" in trained_on.lower()


def in_short(trained_on: str) -> str:
    """That it was trained on phantoms, or mostly on them: where scans are among the data, in the words of a run."""
    return f"trained {'mostly ' if 'scans of' in trained_on else ''}on procedural phantoms"


def render_card(checkpoint: Checkpoint, facts: CardFacts, labels: Sequence[JsonObject]) -> str:
    """The card as Markdown; the same checkpoint and facts give the same text. `labels` are the manifest's entries."""
    config, model, text = checkpoint.config, checkpoint.model, checkpoint.text
    phantoms = on_phantoms(facts.trained_on)
    template = resources.files("model_export").joinpath("model_card.md.tpl").read_text(encoding="utf-8")
    return Template(template).substitute(
        name=facts.name,
        version=facts.version,
        intended_use=facts.intended_use,
        description=facts.description,
        trained_on=f"Trained on: {facts.trained_on}",
        data_note=_PHANTOM_NOTE.format(trained_on=in_short(facts.trained_on)) if phantoms else _OTHER_NOTE,
        architecture=config.architecture,
        backbone_parameters=f"{exported_parameters(model):,}",
        feature_stride=model.feature_stride,
        label_count=len(checkpoint.label_names),
        spacing=" x ".join(f"{edge:g}" for edge in config.spacing_mm),
        intensity_range=_interval(config.intensity_range_hu),
        output_range=_interval(config.output_range),
        roi_size=" x ".join(str(edge) for edge in config.roi_size),
        overlap=f"{config.overlap:g}",
        short_scans=_SHORT_SCANS.format(planes=config.continued_planes)
        if config.continued_planes
        else _NO_CONTINUATION,
        text_encoder=text.encoder,
        prompt_template=text.prompt_template,
        text_source=text.source,
        text_sha256=text.sha256,
        text_weights=f"`{text.weights_sha256}`" if text.weights_sha256 else "not stated with the text features",
        labels=_label_table(labels),
        training=_training_table(checkpoint.sha256, facts.training),
        evaluation=(facts.evaluation or NOT_EVALUATED).strip(),
        windows=_windows(facts.parities),
        parity=_parity_table(facts.parities),
        limits=_PHANTOM_LIMITS if phantoms else _OTHER_LIMITS,
        thresholds=_calibration_note(checkpoint.calibration),
        licence=facts.licence,
    )


def _calibration_note(calibration: Calibration) -> str:
    if calibration == NOT_CALIBRATED:
        return _NOT_CALIBRATED
    by_volume: dict[float, list[str]] = {}
    for name, ml in calibration.lesion_volumes_ml.items():
        by_volume.setdefault(ml, []).append(BY_NAME[name].display_name.lower())
    dropped = [f"{', '.join(names)} below {ml:g} ml" for ml, names in sorted(by_volume.items())]
    return _CALIBRATED.format(scale=calibration.logit_scale, dropped="; ".join(dropped) or "none")


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


def _label_table(labels: Sequence[JsonObject]) -> str:
    rows = (
        (
            str(label["index"]),
            f"`{label['name']}`",
            label["kind"],
            ", ".join(label["hosts"]),
            label["type"]["meaning"],
            label["type"]["value"],
        )
        for label in labels
    )
    return table(("index", "label", "kind", "in", "type", "SNOMED CT"), rows)


def _training_table(checkpoint_sha256: str, training: JsonObject) -> str:
    """The provenance as the checkpoint states it, one row per key; nested values stay JSON-like."""
    rows = [(key, str(value)) for key, value in training.items()]
    return table(("", ""), [*rows, ("checkpoint SHA-256", f"`{checkpoint_sha256}`")])


def _windows(parities: Iterable[PrecisionParity]) -> str:
    first = next(engine for parity in parities for engine in parity.measured)
    return f"{first.windows} windows of a {'CT' if first.source == 'scan' else 'phantom'}"


def _parity_table(parities: Sequence[PrecisionParity]) -> str:
    """A row for each precision and engine, those that are not offered too."""
    rows: list[Sequence[str]] = []
    for parity in parities:
        name = parity.precision.name
        rows += [_parity_row(engine) for engine in parity.measured]
        rows += [(name, engine, "", "", "", f"no: {reason}") for engine, reason in parity.unable.items()]
    shown = table(("precision", "engine", "error of logits", "lowest Dice", "time, torch = 1", "offered"), rows)
    left_out = sorted({name for parity in parities for engine in parity.measured for name in engine.unsteady})
    return f"{shown}\n\n{_UNSTEADY.format(windows=', '.join(left_out))}" if left_out else shown


def _parity_row(parity: EngineParity) -> Sequence[str]:
    lowest = "-" if parity.lowest_dice is None else f"{dice_text(parity.lowest_dice[1])} ({parity.lowest_dice[0]})"
    return (
        parity.precision.name,
        parity.engine,
        f"{parity.max_relative_error:.0e}",
        lowest,
        f"{parity.seconds / parity.torch_seconds:.2f}",
        "yes" if parity.fault is None else f"no: {parity.fault}",
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [_row(head), "|" + "---|" * len(head), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    # A bar or a line break inside a cell would end it.
    return "| " + " | ".join(" ".join(cell.replace("|", r"\|").split()) for cell in cells) + " |"
