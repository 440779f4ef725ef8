"""The scans of a store as one assembly: which dataset each comes from, and which split it belongs to.

Datasets share scans, and patients have several. All scans that share a patient or an image form a group, and a group
lies in one split: the strictest that one of its scans draws. So a scan can move from training to test when a dataset
joins the store, but never from test to training.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from training.datasets.description import Role
from training.datasets.errors import NoCases
from training.datasets.harmonize import ScanSource
from training.label_table import STANDARD, LabelTable, OtherLabels, read_store_table
from training.store import scan_names

_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.05


class Split(IntEnum):
    """What a scan is used for; the larger, the stricter."""

    TRAIN = 0  #: trained on
    VALIDATION = 1  #: looked at while training
    TEST = 2  #: evaluated on, once


@dataclass(frozen=True)
class Assembly:
    """All scans of a store. `scans` maps names to their origin, `splits` to their split; `table` has the labels."""

    store: Path
    scans: Mapping[str, ScanSource]
    splits: Mapping[str, Split] = field(default_factory=dict)
    table: LabelTable = STANDARD

    def datasets(self, split: Split) -> dict[str, tuple[str, ...]]:
        """Names of the scans of a split, by dataset; datasets without one are absent."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, source in self.scans.items():
            if self.splits[name] is split:
                found[source.dataset].append(name)
        return {dataset: tuple(names) for dataset, names in sorted(found.items())}


def labels_of(scans: Assembly | None) -> LabelTable:
    """Those of an assembly; of phantoms alone, the 32."""
    return STANDARD if scans is None else scans.table


def open_assembly(store: Path) -> Assembly:
    """The scans of a store. Raises NoCases for a store without any, OtherLabels for one of other labels."""
    scans = {name: ScanSource.read(store, name) for name in scan_names(store)}
    if not scans:
        raise NoCases(f"{store.name} holds no scans; `viscera-train harmonize` writes them.")
    table = read_store_table(store)
    if table is None:
        raise OtherLabels(
            f"{store.name} does not say which labels its bits mean; harmonize its datasets again (cases that are there "
            "are not done again)."
        )
    return Assembly(store, scans, draw_splits(scans), table)


def draw_splits(scans: Mapping[str, ScanSource]) -> dict[str, Split]:
    """The split of each scan, by its group; drawn from its image alone, so that every store draws the same."""
    group_of = _groups(scans)
    strictest: dict[str, Split] = defaultdict(lambda: Split.TRAIN)
    for name, source in scans.items():
        strictest[group_of[name]] = max(strictest[group_of[name]], _own_split(source))
    return {name: strictest[group_of[name]] for name in scans}


def _own_split(source: ScanSource) -> Split:
    if source.role == Role.TEST:
        return Split.TEST
    if source.role == Role.TRAIN_ONLY:
        return Split.TRAIN
    drawn = int(hashlib.sha256(f"split {source.fingerprint}".encode()).hexdigest()[:8], 16) / 2**32
    if drawn < _TEST_SHARE:
        return Split.TEST
    return Split.VALIDATION if drawn < _TEST_SHARE + _VALIDATION_SHARE else Split.TRAIN


def _groups(scans: Mapping[str, ScanSource]) -> dict[str, str]:
    """A name for the group of each scan: scans joined by patients and images, directly or through others."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for source in scans.values():
        parent[root(f"patient {source.patient}")] = root(f"image {source.fingerprint}")
    return {name: root(f"image {source.fingerprint}") for name, source in scans.items()}
