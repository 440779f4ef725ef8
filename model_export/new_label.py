"""A label that a user describes in a TOML file: what the manifest holds for each label, with defaults.

    name = "uterus"
    display_name = "Uterus"
    kind = "organ"
    color = [214, 120, 160]
    type = { value = "35039007", meaning = "Uterus" }

All keys are in docs/bundles.md. Codes are SNOMED CT.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from model_export.errors import LabelRefused
from model_export.manifest import JsonObject, code_entry, schema_text
from model_export.rules import HOST_REACH, KeepLargest
from training.checkpoint import NOT_CALIBRATED, Calibration
from training.labels import (
    ANATOMICAL_STRUCTURE,
    CYST,
    LEFT,
    MORPHOLOGICALLY_ALTERED_STRUCTURE,
    NEOPLASM,
    RIGHT,
    Code,
    LabelKind,
)

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Byte = Annotated[int, Field(ge=0, le=255)]

_SIDES = {"left": LEFT, "right": RIGHT}
_LESION_TYPES = {LabelKind.TUMOR: NEOPLASM, LabelKind.CYST: CYST}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NewCode(_Part):
    """A concept of SNOMED CT."""

    value: Annotated[str, StringConstraints(pattern=r"^[0-9]{6,16}$")]
    meaning: ShortText


class NewRules(_Part):
    """The two rule sets; each rule is checked as the manifest's schema has it."""

    viscera: tuple[JsonObject, ...] | None = None
    reference: tuple[JsonObject, ...] = ()

    @model_validator(mode="after")
    def _rules_are_known(self) -> Self:
        for rule in (*(self.viscera or ()), *self.reference):
            _check_rule(rule)
        return self


class NewLabel(_Part):
    """What a bundle must be told about a label that it gets.

    `prompt` is the name that the text features were made of; the display name if absent. `index`, the value in the
    label map, is the next free one if absent. An organ needs its `type`; that of a lesion follows from its kind, and
    its `anatomic_region` from its likeliest host. Without `postprocessing.viscera` an organ keeps its largest component
    and a lesion what lies in its hosts; `reference` is empty, as the published implementation does not know the label.
    """

    name: LabelName
    display_name: ShortText
    prompt: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    kind: LabelKind
    color: tuple[Byte, Byte, Byte]
    index: Annotated[int, Field(ge=1, le=65535)] | None = None
    hosts: tuple[LabelName, ...] = ()
    type: NewCode | None = None
    laterality: Literal["left", "right"] | None = None
    anatomic_region: NewCode | None = None
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    postprocessing: NewRules = NewRules()

    @model_validator(mode="after")
    def _kind_and_place_agree(self) -> Self:
        if self.kind is LabelKind.ORGAN:
            if self.hosts or self.anatomic_region is not None:
                raise ValueError("an organ has neither hosts nor an anatomic_region; its type names it")
            if self.type is None:
                raise ValueError("an organ needs its type, a SNOMED CT code")
        if not self.hosts and any(rule["rule"] == "within_hosts" for rule in self._rules()):
            raise ValueError("within_hosts needs hosts")
        return self

    @property
    def prompted(self) -> str:
        """What fills the prompt template."""
        return self.prompt or self.display_name

    def entry(self, labels: Mapping[str, JsonObject], calibration: Calibration = NOT_CALIBRATED) -> JsonObject:
        """The label's entry in a manifest beside `labels`, by name; its threshold from `calibration` unless stated.

        Raises LabelRefused when the name or the index is taken, or a host or a companion of a rule is no organ there.
        """
        self._check_among(labels)
        region = None if self.anatomic_region is None else _code(self.anatomic_region)
        if region is None and self.hosts:
            region = labels[self.hosts[0]]["type"]
        organ = self.kind is LabelKind.ORGAN
        return {
            "index": self.index or 1 + max(label["index"] for label in labels.values()),
            "name": self.name,
            "display_name": self.display_name,
            "kind": self.kind.value,
            "hosts": list(self.hosts),
            "color": list(self.color),
            "category": code_entry(ANATOMICAL_STRUCTURE if organ else MORPHOLOGICALLY_ALTERED_STRUCTURE),
            "type": code_entry(_LESION_TYPES[self.kind]) if self.type is None else _code(self.type),
            "laterality": None if self.laterality is None else code_entry(_SIDES[self.laterality]),
            "anatomic_region": region,
            "threshold": self.threshold or calibration.threshold(self.name),
            "postprocessing": {
                "viscera": list(self._rules()),
                "reference": list(self.postprocessing.reference),
            },
        }

    def _rules(self) -> tuple[JsonObject, ...]:
        if self.postprocessing.viscera is not None:
            return self.postprocessing.viscera
        if self.kind is LabelKind.ORGAN:
            return (asdict(KeepLargest(count=1)),)
        return (asdict(HOST_REACH),) if self.hosts else ()

    def _check_among(self, labels: Mapping[str, JsonObject]) -> None:
        if self.name in labels:
            raise LabelRefused(f"The bundle has a label {self.name!r} already; choose another name.")
        for label in labels.values():
            if label["index"] == self.index:
                raise LabelRefused(
                    f"Index {self.index} is that of {label['name']!r}; leave it out for the next free one."
                )
        organs = {name for name, label in labels.items() if label["kind"] == LabelKind.ORGAN.value}
        for host in self.hosts:
            if host not in organs:
                raise LabelRefused(f"The host {host!r} of {self.name!r} is not an organ of the bundle.")
        for rule in (*self._rules(), *self.postprocessing.reference):
            companion = rule.get("partner") or rule.get("organ")
            if companion is not None and companion not in organs:
                raise LabelRefused(
                    f"A rule of {self.name!r} looks at {companion!r}, which is not an organ of the bundle."
                )


def read_label(path: Path) -> NewLabel:
    """The label that a TOML file describes. Raises LabelRefused with the place and the reason of the first fault."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabelRefused(f"{path.name} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LabelRefused(f"{path.name} is not TOML: {error}.") from error
    try:
        return NewLabel.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise LabelRefused(f"{path.name} is off{f' at {place}' if place else ''}: {fault['msg']}.") from error


def _code(code: NewCode) -> JsonObject | None:
    return code_entry(Code(code.value, code.meaning))


def _check_rule(rule: JsonObject) -> None:
    """Raises ValueError with what is wrong with a rule."""
    variants = _rule_schemas()
    name = rule.get("rule")
    if name not in variants:
        raise ValueError(f"there is no rule {name!r}; choose from {', '.join(variants)}")
    if faults := sorted(fault.message for fault in Draft202012Validator(variants[name]).iter_errors(rule)):
        raise ValueError(f"{name}: {faults[0]}")


@cache
def _rule_schemas() -> dict[str, JsonObject]:
    """The schema of each rule, by its name, able to stand alone."""
    definitions = json.loads(schema_text())["$defs"]
    return {
        variant["properties"]["rule"]["const"]: {**variant, "$defs": definitions}
        for variant in definitions["rule"]["oneOf"]
    }
