"""What DICOM objects speak of one by one: an organ is its whole mask, a lesion one connected component.

Masks stay bits: a structure hands out its planes slice by slice, and nothing here is as large as the scan.
Planes are (rows, columns) = (j, i), as DICOM stores an image.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import cc3d
import numpy as np
from numpy.typing import NDArray

from service.inference.manifest import Label
from service.inference.masks import Box, LabelMask, Masks
from service.reporting.regions import Region, label_regions

MOST_LESIONS: Final = 100
"""Lesions of one label that are measured and have a segment: where the network sees noise there can be thousands."""

_SLICES_PER_SLAB: Final = 16


@dataclass(frozen=True)
class Component:
    """One lesion of a label: `rank` by volume from 1, its mask (bool) inside its own `box`."""

    rank: int
    mask: NDArray[np.bool_]
    box: Box


@dataclass(frozen=True)
class Components:
    """The lesions of a label: how many there are, and one by one the `MOST_LESIONS` largest of them."""

    count: int
    largest: Iterable[Component]


def components(region: Region) -> Components:
    """The 26-connected components of one label, the largest first; of equal ones that with the lower centroid."""
    if region.box is None:
        return Components(0, ())
    # As uint8: the path for booleans of cc3d 4.1.1 reserves too few labels where single voxels lie densely, and fails.
    numbered = cc3d.connected_components(region.mask.view(np.uint8), connectivity=26)
    statistics = cc3d.statistics(numbered)
    counts = statistics["voxel_counts"]
    numbers = sorted(range(1, len(counts)), key=lambda n: (-int(counts[n]), tuple(statistics["centroids"][n])))

    def cut_out(rank: int, number: int) -> Component:
        inner: Box = statistics["bounding_boxes"][number]
        i, j, k = (
            slice(int(cut.start) + first, int(cut.stop) + first) for cut, first in zip(inner, region.start, strict=True)
        )
        return Component(rank, numbered[inner] == number, (i, j, k))

    return Components(len(numbers), (cut_out(*one) for one in enumerate(numbers[:MOST_LESIONS], start=1)))


def lesion_id(label: Label, rank: int) -> str:
    """The id of a lesion in findings and DICOM objects."""
    return f"{label.name}-{rank}"


@dataclass(frozen=True, eq=False)
class Structure:
    """A mask that is not empty, with the id of its finding: the label's name for an organ, the lesion's id.

    `title` is its name for people, `bits` its mask in the scan and `box` where that lies. Only what lies in `slices`
    is spoken of; None: all of it.
    """

    id: str
    title: str
    label: Label
    box: Box
    bits: LabelMask
    slices: frozenset[int] | None = None

    def planes(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(k, plane) of each slice that the structure is in, by k; the plane is cut to the box."""
        i, j, k = self.box
        for first in range(k.start, k.stop, _SLICES_PER_SLAB):
            depth = slice(first, min(first + _SLICES_PER_SLAB, k.stop))
            slab = np.ascontiguousarray(self.bits.read((i, j, depth)).transpose(2, 1, 0))
            for place, plane in enumerate(slab, start=first):
                if plane.any() and (self.slices is None or place in self.slices):
                    yield place, plane

    def frames(self, rows: int, columns: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(k, frame) like `planes`, each laid into a whole image."""
        i, j, _ = self.box
        for k, plane in self.planes():
            frame = np.zeros((rows, columns), dtype=np.bool_)
            frame[j, i] = plane
            yield k, frame


def organs(masks: Masks) -> tuple[Structure, ...]:
    """The organs that were found, in the bundle's order."""
    return tuple(
        Structure(region.label.name, region.label.display_name, region.label, region.box, region.bits)
        for region in label_regions(masks)
        if region.box is not None and not region.label.kind.is_lesion
    )


def lesions(masks: Masks) -> Iterator[Structure]:
    """The lesions that were found, one by one, in the order of the findings."""
    return (
        _lesion(region.label, one)
        for region in label_regions(masks)
        if region.label.kind.is_lesion
        for one in components(region).largest
    )


def on_slices(structures: Iterable[Structure], slices: frozenset[int]) -> tuple[Structure, ...]:
    """What of the structures lies in these slices; one that lies in none of them is left out."""
    cut = (replace(structure, slices=slices) for structure in structures)
    return tuple(structure for structure in cut if any(True for _ in structure.planes()))


def _lesion(label: Label, one: Component) -> Structure:
    title = f"{label.display_name} {one.rank}"
    return Structure(lesion_id(label, one.rank), title, label, one.box, LabelMask.of(one.box, one.mask))
