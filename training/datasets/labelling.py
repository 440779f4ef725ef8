"""From a dataset's own labels to ours: bits of a label map, and back to the dataset's values for a submission."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from training.datasets.description import DatasetDescription, single_names
from training.datasets.errors import UnknownLabelValue
from training.datasets.sides import middle_of_body, split_sides
from training.label_table import STANDARD, LabelMap, LabelTable
from training.labels import PAIRS

Masks = dict[tuple[str, ...], NDArray[np.bool_]]


def masks_of_values(
    values: NDArray[np.int16], table: Mapping[int, tuple[str, ...]], ignored: Mapping[int, str]
) -> Masks:
    """The masks of a label map by their meaning. Raises UnknownLabelValue."""
    present = np.flatnonzero(np.bincount(values.clip(0).ravel())) if values.min() >= 0 else np.unique(values)
    unknown = [int(value) for value in present if value != 0 and value not in table and value not in ignored]
    if unknown:
        known = ", ".join(str(value) for value in sorted({*table, *ignored}))
        raise UnknownLabelValue(f"The label map holds {', '.join(map(str, unknown))}; known values are {known}.")
    masks: Masks = {}
    for value, names in table.items():
        mask = values == value
        masks[names] = masks[names] | mask if names in masks else mask
    return masks


def label_bits(masks: Masks, hu: NDArray[np.int16], table: LabelTable = STANDARD) -> LabelMap:
    """Bit c is channel c, of masks by all the names that hold in them; pairs are split into their sides."""
    bits: LabelMap = np.zeros(hu.shape, table.bit_type)
    for name in dict.fromkeys(name for names in masks for name in names):
        mask = np.zeros(hu.shape, bool)
        for names, part in masks.items():
            if name in names:
                mask |= part
        if name in PAIRS:
            for side, of_side in zip(PAIRS[name], split_sides(mask, middle_of_body(hu, mask)), strict=True):
                bits[of_side] |= table.bit_type(table.bits([side]))
        else:
            bits[mask] |= table.bit_type(table.bits([name]))
    return bits


def supervised_bits(description: DatasetDescription, case: str, masks: Masks, table: LabelTable = STANDARD) -> int:
    """The labels annotated in a case, bit c for channel c."""
    names = description.supervised_in(case, table)
    if description.only_present:
        present = {single for meaning in masks for single in single_names(meaning)}
        names = tuple(name for name in names if name in present)
    return table.bits(names)


def to_dataset_values(
    masks: Mapping[str, NDArray[np.bool_]], table: Mapping[int, tuple[str, ...]]
) -> NDArray[np.uint8]:
    """A label map with the dataset's own values, from masks by our names: what a challenge wants submitted.

    A value is painted where the most specific of its names holds, the last one; the fewer names, the earlier, so that a
    tumour covers its organ. Raises KeyError for a name that has no mask.
    """
    (shape,) = {mask.shape for mask in masks.values()}
    values = np.zeros(shape, np.uint8)
    for value, names in sorted(table.items(), key=lambda item: (len(item[1]), item[0])):
        for single in single_names(names[-1:]):
            values[masks[single]] = value
    return values
