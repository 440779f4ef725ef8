"""From the description of a label beyond the 32 (`training.new_label`) to its entry in a manifest."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

from model_export.errors import LabelRefused
from model_export.manifest import JsonObject, code_entry, schema_text
from model_export.rules import HOST_REACH, LARGEST_AND_CUT_PIECES
from training.checkpoint import NOT_CALIBRATED, Calibration
from training.labels import LabelKind
from training.new_label import InvalidLabel, NewLabel
from training.new_label import read_label as read_description


def read_label(path: Path) -> NewLabel:
    """The label that a TOML file describes, its rules known. Raises LabelRefused with the reason of the first fault."""
    try:
        label = read_description(path)
    except InvalidLabel as error:
        raise LabelRefused(str(error)) from error
    check_rules(label)
    return label


def check_rules(label: NewLabel) -> None:
    """Raises LabelRefused with what is wrong with the first rule that the manifest's schema does not know."""
    variants = _rule_schemas()
    for rule in (*(label.postprocessing.viscera or ()), *label.postprocessing.reference):
        name = rule.get("rule")
        if name not in variants:
            raise LabelRefused(
                f"A rule of {label.name!r} is off: there is no rule {name!r}; choose from {', '.join(variants)}."
            )
        if faults := sorted(fault.message for fault in Draft202012Validator(variants[name]).iter_errors(rule)):
            raise LabelRefused(f"A rule of {label.name!r} is off: {name}: {faults[0]}.")


def new_label_entry(
    label: NewLabel, labels: Mapping[str, JsonObject], calibration: Calibration = NOT_CALIBRATED
) -> JsonObject:
    """The label's entry in a manifest beside `labels`, by name; its threshold from `calibration` unless stated.

    Raises LabelRefused when the name or the index is taken, or a host or a companion of a rule is no organ there.
    """
    _check_among(label, labels)
    region: JsonObject | None = None if label.anatomic_region is None else code_entry(label.anatomic_region.code())
    if region is None and label.hosts:
        region = labels[label.hosts[0]]["type"]
    return {
        "index": label.index or 1 + max(entry["index"] for entry in labels.values()),
        "name": label.name,
        "display_name": label.display_name,
        "kind": label.kind.value,
        "hosts": list(label.hosts),
        "color": list(label.color),
        "category": code_entry(label.category),
        "type": code_entry(label.type_code),
        "laterality": code_entry(label.side),
        "anatomic_region": region,
        "threshold": label.threshold or calibration.threshold(label.name),
        "postprocessing": {
            "viscera": list(_rules(label)),
            "reference": list(label.postprocessing.reference),
        },
    }


def _rules(label: NewLabel) -> tuple[JsonObject, ...]:
    if label.postprocessing.viscera is not None:
        return label.postprocessing.viscera
    if label.kind is LabelKind.ORGAN:
        return (asdict(LARGEST_AND_CUT_PIECES),)
    return (asdict(HOST_REACH),) if label.hosts else ()


def _check_among(label: NewLabel, labels: Mapping[str, JsonObject]) -> None:
    if label.name in labels:
        raise LabelRefused(f"The bundle has a label {label.name!r} already; choose another name.")
    for entry in labels.values():
        if entry["index"] == label.index:
            raise LabelRefused(f"Index {label.index} is that of {entry['name']!r}; leave it out for the next free one.")
    organs = {name for name, entry in labels.items() if entry["kind"] == LabelKind.ORGAN.value}
    for host in label.hosts:
        if host not in organs:
            raise LabelRefused(f"The host {host!r} of {label.name!r} is not an organ of the bundle.")
    for rule in (*_rules(label), *label.postprocessing.reference):
        companion = rule.get("partner") or rule.get("organ")
        if companion is not None and companion not in organs:
            raise LabelRefused(f"A rule of {label.name!r} looks at {companion!r}, which is not an organ of the bundle.")


@cache
def _rule_schemas() -> dict[str, JsonObject]:
    """The schema of each rule, by its name, able to stand alone."""
    definitions = json.loads(schema_text())["$defs"]
    return {
        variant["properties"]["rule"]["const"]: {**variant, "$defs": definitions}
        for variant in definitions["rule"]["oneOf"]
    }
