"""Which labels a model, a store and its masks have: the 32, and after them own ones that a user describes.

Channel c of a model is bit c of a label map is label c of the table. A table only grows at its end, so whatever was
made with a shorter one keeps its meaning. Phantoms have the 32.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from training.labels import LABELS, PAIRS, Label, LabelKind
from training.new_label import InvalidLabel, NewLabel, read_label

MOST_LABELS = 64  # bits of a voxel, in stores as in the service's masks
_FILE = "labels.json"

LabelMap: TypeAlias = NDArray[np.unsignedinteger]  #: bit c is channel c


class OtherLabels(ValueError):
    """A store, a checkpoint or a file of text features was made with other labels."""


@dataclass(frozen=True)
class LabelTable:
    """The 32 labels and `own` ones after them, in the order of their channels.

    Raises InvalidLabel for a name or an index that comes twice, a host that is no organ of the table, or more than 64
    labels.
    """

    own: tuple[NewLabel, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) > MOST_LABELS:
            raise InvalidLabel(f"{len(self.labels)} labels; a voxel has bits for {MOST_LABELS}.")
        taken: set[str | int | None] = {*PAIRS, *(label.name for label in LABELS), *(label.index for label in LABELS)}
        for label in self.own:
            if label.name in taken:
                raise InvalidLabel(f"There is a label {label.name!r} already; choose another name.")
            if label.index in taken:
                raise InvalidLabel(f"Another label has the index {label.index} of {label.name!r}; leave it out.")
            taken |= {label.name} if label.index is None else {label.name, label.index}
        organs = {organ.name for organ in self.organs}
        for label in self.own:
            if unknown := [host for host in label.hosts if host not in organs]:
                raise InvalidLabel(f"The host {unknown[0]!r} of {label.name!r} is not an organ of the label table.")

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        """By channel."""
        return (*LABELS, *(label.on_channel(channel) for channel, label in enumerate(self.own, len(LABELS))))

    @cached_property
    def by_name(self) -> Mapping[str, Label]:
        """Every label by its name."""
        return {label.name: label for label in self.labels}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """By channel."""
        return tuple(self.by_name)

    @cached_property
    def organs(self) -> tuple[Label, ...]:
        """Those of the kind organ."""
        return tuple(label for label in self.labels if label.kind is LabelKind.ORGAN)

    @cached_property
    def lesions(self) -> tuple[Label, ...]:
        """The others."""
        return tuple(label for label in self.labels if label.kind is not LabelKind.ORGAN)

    @property
    def bit_type(self) -> type[np.uint32] | type[np.uint64]:
        """Of a label map: as wide as the labels need."""
        return np.uint32 if len(self.labels) <= 32 else np.uint64

    def bits(self, names: Iterable[str]) -> int:
        """The named labels as one bit field. Raises KeyError for an unknown name."""
        return sum({1 << self.by_name[name].channel for name in names})


STANDARD = LabelTable()


def has_label(bits: LabelMap, label: Label) -> NDArray[np.bool_]:
    """Where a label map, or the labels of codes, have a label."""
    return (bits >> bits.dtype.type(label.channel) & bits.dtype.type(1)).astype(np.bool_)


def from_least_specific(table: LabelTable) -> tuple[Label, ...]:
    """Own organs, which may hold others; organs; a vessel inside its organ; lesions, inside their hosts."""
    own = {label.name for label in table.own}
    organs = sorted(table.organs, key=lambda organ: (organ.name not in own, organ.name == "hepatic_vessel"))
    return (*organs, *table.lesions)


def labels_from(content: Sequence[Mapping[str, Any]]) -> tuple[NewLabel, ...]:
    """Labels as `json_of` wrote them. Raises InvalidLabel."""
    try:
        return tuple(NewLabel.model_validate_json(json.dumps(one)) for one in content)
    except ValidationError as error:
        raise InvalidLabel(f"A description of a label is off: {error}") from error


def json_of(own: Iterable[NewLabel]) -> list[dict[str, Any]]:
    """Descriptions of labels, JSON-ready."""
    return [label.model_dump(mode="json") for label in own]


def read_table(paths: Sequence[Path]) -> LabelTable:
    """The 32 and the label of each TOML file. Raises InvalidLabel."""
    return LabelTable(tuple(read_label(path) for path in paths)) if paths else STANDARD


def write_store_table(store: Path, table: LabelTable) -> None:
    """Notes in a store, in one step, which labels its bits mean, unless it says so already."""
    if read_store_table(store) == table:
        return
    path = store / _FILE
    part = path.with_name(f".{path.name}")
    content = {"names": table.names, "own": json_of(table.own)}
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_store_table(store: Path) -> LabelTable | None:
    """The labels that the bits of a store mean; None where it does not say. Raises OtherLabels for a foreign table."""
    path = store / _FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table = LabelTable(labels_from(content["own"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OtherLabels(f"{_FILE} of {store.name} does not name labels: {error}") from error
    if list(table.names) != content["names"]:
        raise OtherLabels(f"{store.name} was made with another label table; harmonize its datasets into a new store.")
    return table


def table_with(store: Path, table: LabelTable) -> LabelTable:
    """The labels of a store, if it has any yet, and after them those of `table`.

    A label that the store has keeps its bit; of its description the newer one counts. Raises OtherLabels for a store
    of another label table, InvalidLabel where both do not go together.
    """
    before = read_store_table(store) or STANDARD
    own = {label.name: label for label in before.own} | {label.name: label for label in table.own}
    return LabelTable(tuple(own.values()))
