"""How a dataset is described: where its files lie, what its labels mean, what it supervises. One small YAML each.

The datasets of the paper are in `registry/`; an own one is a file of the same form. Labels are given by name, never by
channel. Besides the names of the label table there are pairs (`PAIRS`) for labels that do not tell left from right.
"""

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from training.datasets.errors import InvalidDescription, UnknownDataset
from training.label_table import STANDARD, LabelTable
from training.labels import PAIRS

REGISTRY = Path(__file__).parent / "registry"

Names = tuple[str, ...]
Pattern = Annotated[str, StringConstraints(min_length=1)]


class Role(StrEnum):
    """What the cases of a dataset may be used for."""

    TRAIN = "train"  #: drawn into training, validation and test by patient and image
    TRAIN_ONLY = "train_only"  #: all trained on, unless one is of a patient or an image that is drawn elsewhere
    TEST = "test"  #: never trained on: external test sets


class FewerLabels(BaseModel):
    """Cases in which less was annotated than in the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: Pattern  #: regular expression for the whole case name
    supervised: Names


class DatasetDescription(BaseModel):
    r"""One dataset.

    `image` and `label` are paths below the dataset's folder: `**/` stands for any folders, `*` for any part of a name,
    `{case}` for the case's name and `{structure}` for the name of a file with one mask; `{case:\d+}` narrows it down.
    An image of several files is a DICOM series; labels of several files are one mask per structure, or one per slice.
    `values` gives the meaning of a label map's values, `structures` that of mask files (wildcards allowed): all names
    that hold there, the most specific one last. A tumour inside its organ has both names.
    `orders` replaces `values` where a dataset went round in several label orders; volumes decide which one it is.
    `ignored` are values that mean something else. `supervised` are the labels that were annotated in every case;
    absent: all that are named; with `only_present`, those of them that the case has a mask for.
    `same_voxels`: label files follow the image voxel by voxel, whatever their header says of its place.
    `exclude` maps a regular expression for case names to the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$", max_length=40)]
    title: str
    image: Pattern
    label: Pattern | None = None
    values: dict[int, Names] = Field(default_factory=dict)
    structures: dict[str, Names] = Field(default_factory=dict)
    orders: dict[str, dict[int, Names]] = Field(default_factory=dict)
    ignored: dict[int, str] = Field(default_factory=dict)
    supervised: Names | None = None
    only_present: bool = False
    fewer: tuple[FewerLabels, ...] = ()
    same_voxels: bool = False
    exclude: dict[str, str] = Field(default_factory=dict)
    patient: Pattern = r"(.*)"  #: regular expression for case names; its first group names the patient
    role: Role = Role.TRAIN
    labelled_cases: int | None = None
    licence: str = "not stated"
    citation: str = "not stated"
    source: str = "not stated"
    unverified: str | None = None  #: what of all this was not checked against the dataset itself

    @field_validator("patient")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        if _compiled(pattern).groups < 1:
            raise ValueError("needs a group in parentheses that names the patient")
        return pattern

    @model_validator(mode="after")
    def _labels_mean_something(self) -> Self:
        kinds = [bool(self.values), bool(self.structures), bool(self.orders)]
        if self.label is not None and sum(kinds) != 1:
            raise ValueError("one of `values`, `structures` and `orders` must say what the labels mean")
        if bool(self.structures) != (self.label is not None and "{structure}" in self.label):
            raise ValueError("`structures` goes with {structure} in `label`")
        for pattern in (*self.exclude, *(part.cases for part in self.fewer)):
            _compiled(pattern)
        return self

    def _named(self) -> set[str]:
        """What the dataset's own labels mean, in any of its label orders."""
        tables: list[Mapping[Any, Names]] = [self.values, self.structures, *self.orders.values()]
        return {name for table in tables for names in table.values() for name in names}

    def unknown_in(self, table: LabelTable) -> list[str]:
        """Names of labels that the table does not have, sorted."""
        names = self._named().union(self.supervised or (), *(part.supervised for part in self.fewer))
        return sorted(names - table.by_name.keys() - PAIRS.keys())

    def supervised_in(self, case: str, table: LabelTable = STANDARD) -> tuple[str, ...]:
        """Labels annotated in a case, both sides of a pair by their own names, in the order of the label table."""
        names: Iterable[str] = self._named() if self.supervised is None else self.supervised
        names = next((part.supervised for part in self.fewer if re.fullmatch(part.cases, case)), names)
        return tuple(sorted(set(single_names(names)), key=lambda name: table.by_name[name].index))

    def names_of_structure(self, structure: str) -> Names | None:
        """What a mask file's name means; None for one that is not used."""
        return next((names for key, names in self.structures.items() if fnmatch(structure, key)), None)

    def patient_of(self, case: str) -> str:
        """The patient of a case; the case itself if its name does not tell."""
        found = re.fullmatch(self.patient, case)
        return f"{self.name}/{found[1] if found else case}"

    def reason_to_exclude(self, case: str) -> str | None:
        """Why a case is left out; None if it is not."""
        return next((reason for pattern, reason in self.exclude.items() if re.fullmatch(pattern, case)), None)


def read_description(name_or_path: str, table: LabelTable = STANDARD) -> DatasetDescription:
    """A dataset of the registry by name, or any YAML file by path, with labels of the table.

    Raises UnknownDataset, InvalidDescription.
    """
    named = REGISTRY / f"{name_or_path}.yaml"
    path = named if named.is_file() else Path(name_or_path)
    if not path.is_file():
        raise UnknownDataset(f"No dataset {name_or_path!r}; known: {', '.join(known_datasets())}; or give a YAML file.")
    try:
        description = DatasetDescription.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError, UnicodeDecodeError, re.error) as error:
        raise InvalidDescription(f"{path.name} does not describe a dataset: {error}") from error
    if unknown := description.unknown_in(table):
        known = ", ".join(sorted({*table.by_name, *PAIRS}))
        raise InvalidDescription(
            f"{path.name} names unknown labels {', '.join(unknown)}; known: {known}. A label of your own needs --label."
        )
    return description


def known_datasets() -> list[str]:
    """Names of the registry's datasets."""
    return sorted(path.stem for path in REGISTRY.glob("*.yaml"))


def single_names(names: Iterable[str]) -> list[str]:
    """Names with each pair replaced by its two sides."""
    return [single for name in names for single in PAIRS.get(name, (name,))]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
