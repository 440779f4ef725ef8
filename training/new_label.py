"""A label beyond the 32, as a user describes it in a TOML file: what a bundle must say of it, with defaults.

    name = "uterus"
    display_name = "Uterus"
    kind = "organ"
    color = [214, 120, 160]
    type = { value = "35039007", meaning = "Uterus" }

All keys are in docs/bundles.md. Codes are SNOMED CT.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from training.labels import (
    ANATOMICAL_STRUCTURE,
    CYST,
    LEFT,
    MORPHOLOGICALLY_ALTERED_STRUCTURE,
    NEOPLASM,
    RIGHT,
    Code,
    Label,
    LabelKind,
)

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Byte = Annotated[int, Field(ge=0, le=255)]
RuleEntry: TypeAlias = dict[str, Any]

_SIDES = {"left": LEFT, "right": RIGHT}
_LESION_TYPES = {LabelKind.TUMOR: NEOPLASM, LabelKind.CYST: CYST}


class InvalidLabel(ValueError):
    """A file does not describe a label."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NewCode(_Part):
    """A concept of SNOMED CT."""

    value: Annotated[str, StringConstraints(pattern=r"^[0-9]{6,16}$")]
    meaning: ShortText

    def code(self) -> Code:
        """As the label table has it."""
        return Code(self.value, self.meaning)


class NewRules(_Part):
    """The two rule sets of post-processing, as the manifest has them; the exporter checks each rule."""

    viscera: tuple[RuleEntry, ...] | None = None
    reference: tuple[RuleEntry, ...] = ()


class NewLabel(_Part):
    """What training and a bundle must be told about a label.

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
        if not self.hosts and any(rule.get("rule") == "within_hosts" for rule in self.postprocessing.viscera or ()):
            raise ValueError("within_hosts needs hosts")
        return self

    @property
    def prompted(self) -> str:
        """What fills the prompt template."""
        return self.prompt or self.display_name

    @property
    def category(self) -> Code:
        """The property category that goes with the kind."""
        return ANATOMICAL_STRUCTURE if self.kind is LabelKind.ORGAN else MORPHOLOGICALLY_ALTERED_STRUCTURE

    @property
    def type_code(self) -> Code:
        """The stated type, or that of the kind of lesion."""
        return _LESION_TYPES[self.kind] if self.type is None else self.type.code()

    @property
    def side(self) -> Code | None:
        """The laterality as a code."""
        return None if self.laterality is None else _SIDES[self.laterality]

    def on_channel(self, channel: int) -> Label:
        """The label as one output channel of a model."""
        return Label(
            index=channel + 1,
            name=self.name,
            display_name=self.display_name,
            prompt=self.prompted,
            kind=self.kind,
            color=self.color,
            category=self.category,
            type=self.type_code,
            laterality=self.side,
            anatomic_region=None if self.anatomic_region is None else self.anatomic_region.code(),
            hosts=self.hosts,
        )


def read_label(path: Path) -> NewLabel:
    """The label that a TOML file describes. Raises InvalidLabel with the place and the reason of the first fault."""
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidLabel(f"{path.name} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidLabel(f"{path.name} is not TOML: {error}.") from error
    try:
        return NewLabel.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise InvalidLabel(f"{path.name} is off{f' at {place}' if place else ''}: {fault['msg']}.") from error
