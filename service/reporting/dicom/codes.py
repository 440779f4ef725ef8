"""Codes of the objects: those of the bundle's labels, and the few of the standard that describe measurements.

A label says what it is; a side comes from the label itself or, for a lesion, from the organ it lies in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from highdicom.sr import CodedConcept

from service.inference.manifest import Code, Label


def concept(value: str, scheme: str, meaning: str) -> CodedConcept:
    """A coded concept (PS3.3 section 8.8)."""
    return CodedConcept(value, scheme, meaning)


FAMILY: Final = concept("123110", "DCM", "Artificial Intelligence")  # CID 7162


def coded(code: Code) -> CodedConcept:
    """A code of the manifest."""
    return concept(code.value, code.scheme, code.meaning)


@dataclass(frozen=True)
class Site:
    """Where a structure lies: the anatomy and its side."""

    anatomy: Code
    laterality: Code | None


def site_of(label: Label, host: Label | None) -> Site:
    """An organ is its own site. A lesion's is its host, found by its voxels; else what its label says."""
    if not label.kind.is_lesion:
        return Site(label.type, label.laterality)
    if host is not None:
        return Site(host.type, host.laterality)
    return Site(label.anatomic_region or label.type, label.laterality)


def hosts_by_lesion(labels: tuple[Label, ...], host_of: Mapping[str, str | None]) -> dict[str, Label]:
    """The host's label of each lesion id that has one."""
    by_name = {label.name: label for label in labels}
    return {lesion: by_name[host] for lesion, host in host_of.items() if host is not None}
