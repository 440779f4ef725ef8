"""DICOM SEG (PS3.3 A.51): organs in one object, lesions in another, a segment for each structure that was found.

BINARY holds masks that overlap, one bit per pixel; LABELMAP (Sup 243) holds one number per pixel, and where organs
overlap, the smaller one shows. Both are written as Deflated Explicit VR Little Endian (PS3.5 A.5): there is no RLE for
single-bit frames (PS3.5 section 8.2.2), and the 70 MB or more of a whole trunk deflate to about 1.

highdicom makes the object. It wants all segments as an array of a byte per voxel each, gigabytes for a scan of
25 organs; so a BINARY object is made for a series of images of one pixel, which says which slices each segment is in,
and the frames, packed from the masks' bits, take the place of those pixels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from service.imaging.dicom_source import SourceImage
from service.inference.manifest import Label
from service.reporting.dicom.codes import FAMILY, coded, site_of
from service.reporting.dicom.objects import RESEARCH_USE, Authorship, new_uid
from service.reporting.structures import Structure

_ImageKey = tuple[str, int | None]  # SOP instance UID and frame

_SERIES_NUMBERS: Final = {"organs": 9101, "lesions": 9102}


def binary_segmentation(
    authorship: Authorship,
    structures: Sequence[Structure],
    content: str,
    shape: tuple[int, int, int],
    hosts: Mapping[str, Label],
) -> hd.seg.Segmentation:
    """A BINARY SEG of structures that are not empty; `content` is organs or lesions, `shape` the volume's (i, j, k)."""
    columns, rows, _ = shape
    images = authorship.source.images
    place_of = {image.k: place for place, image in enumerate(images)}
    occupied = np.zeros((len(images), 1, 1, len(structures)), dtype=np.bool_)
    packed: dict[tuple[int, _ImageKey], NDArray[np.uint8]] = {}
    for number, structure in enumerate(structures):
        for k, frame in structure.frames(rows, columns):
            place = place_of[k]
            occupied[place, 0, 0, number] = True
            packed[number + 1, _key(images[place])] = np.packbits(frame, bitorder="little")
    segmentation = _segmentation(authorship, structures, content, hosts, "BINARY", occupied, (1, 1))
    segmentation.Rows, segmentation.Columns = rows, columns
    segmentation.PixelData = _end_to_end((packed[frame] for frame in _frames(segmentation)), rows * columns)
    segmentation.SegmentsOverlap = "YES" if _overlap(structures, shape) else "NO"
    return segmentation


def labelmap_segmentation(
    authorship: Authorship, structures: Sequence[Structure], content: str, shape: tuple[int, int, int]
) -> hd.seg.Segmentation:
    """A LABELMAP SEG; later structures lie over earlier ones, and one that is wholly covered has no segment."""
    columns, rows, _ = shape
    place_of = {image.k: place for place, image in enumerate(authorship.source.images)}
    shown = np.zeros((len(place_of), rows, columns), dtype=np.uint8 if len(structures) < 256 else np.uint16)
    for number, structure in enumerate(structures, start=1):
        i, j, _ = structure.box
        for k, plane in structure.planes():
            shown[place_of[k], j, i][plane] = number
    visible = np.flatnonzero(np.bincount(shown.ravel(), minlength=len(structures) + 1)[1:])
    renumbered = np.zeros(len(structures) + 1, dtype=shown.dtype)
    renumbered[visible + 1] = np.arange(1, visible.size + 1)
    return _segmentation(
        authorship,
        [structures[number] for number in visible.tolist()],
        content,
        {},
        "LABELMAP",
        renumbered[shown],
        (rows, columns),
    )


def save_segmentation(authorship: Authorship, segmentation: hd.seg.Segmentation, path: Path) -> None:
    """Write the object, deflated.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    authorship.save(segmentation, path, DeflatedExplicitVRLittleEndian)


def segment_numbers(segmentation: Dataset) -> dict[str, int]:
    """Segment number by tracking id, which is the id of the finding."""
    return {item.TrackingID: item.SegmentNumber for item in segmentation.SegmentSequence if "TrackingID" in item}


def _segmentation(
    authorship: Authorship,
    structures: Sequence[Structure],
    content: str,
    hosts: Mapping[str, Label],
    kind: str,
    pixels: NDArray[np.generic],
    matrix: tuple[int, int],
) -> hd.seg.Segmentation:
    segmentation = hd.seg.Segmentation(
        source_images=authorship.source_datasets(*matrix),
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            _segment(authorship, number, structure, hosts.get(structure.id))
            for number, structure in enumerate(structures, start=1)
        ],
        series_instance_uid=new_uid(),
        series_number=_SERIES_NUMBERS[content],
        sop_instance_uid=new_uid(),
        instance_number=1,
        series_description=f"Viscera {content}. {RESEARCH_USE}",
        content_label=f"VISCERA_{content.upper()}",
        content_description=RESEARCH_USE,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
        **authorship.equipment,
    )
    _restore_frame_numbers(segmentation, authorship.source.images)
    return segmentation


def _restore_frame_numbers(segmentation: Dataset, images: Sequence[SourceImage]) -> None:
    """References to frames by their numbers in the source, which may hold others, and these in another order.

    highdicom counts those that it was given, and frames of several segments share one reference.
    """
    references = {id(one): one for one in map(_source_image, segmentation.PerFrameFunctionalGroupsSequence)}
    for reference in references.values():
        if "ReferencedFrameNumber" in reference:
            reference.ReferencedFrameNumber = images[reference.ReferencedFrameNumber - 1].frame


def _segment(
    authorship: Authorship, number: int, structure: Structure, host: Label | None
) -> hd.seg.SegmentDescription:
    """The description of one segment (PS3.3 C.8.20.4), with sides as modifiers of what they belong to."""
    label, bundle = structure.label, authorship.provenance.bundle
    site = site_of(label, host)
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.title[:64],
        segmented_property_category=coded(label.category),
        segmented_property_type=coded(label.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=bundle.name, family=FAMILY, version=bundle.version, source=authorship.provenance.software
        ),
        tracking_uid=new_uid(),
        tracking_id=structure.id,
        anatomic_regions=[coded(site.anatomy)] if label.kind.is_lesion else None,
        display_color=hd.color.CIELabColor.from_rgb(*label.color),
    )
    if label.laterality is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            coded(label.laterality)
        ]
    if label.kind.is_lesion and site.laterality is not None:
        segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [coded(site.laterality)]
    return segment


def _end_to_end(frames: Iterable[NDArray[np.uint8]], bits: int) -> bytes:
    """Single-bit frames, the lowest bit first, without padding between them but of even length (PS3.5 8.1.1)."""
    if bits % 8 == 0:
        pieces = [frame.tobytes() for frame in frames]
    else:
        pieces, left_over = [], np.zeros(0, dtype=np.uint8)
        for frame in frames:
            run = np.concatenate([left_over, np.unpackbits(frame, count=bits, bitorder="little")])
            whole = run.size // 8 * 8
            pieces.append(np.packbits(run[:whole], bitorder="little").tobytes())
            left_over = run[whole:]
        pieces.append(np.packbits(left_over, bitorder="little").tobytes())
    joined = b"".join(pieces)
    return joined + b"\0" * (len(joined) % 2)


def _overlap(structures: Iterable[Structure], shape: tuple[int, int, int]) -> bool:
    taken = np.zeros(shape[::-1], dtype=np.bool_)
    for structure in structures:
        i, j, _ = structure.box
        for k, plane in structure.planes():
            here = taken[k, j, i]
            if (here & plane).any():
                return True
            here |= plane
    return False


def _frames(segmentation: Dataset) -> Iterator[tuple[int, _ImageKey]]:
    """(segment number, source image) of each frame."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        holder = item if "SegmentIdentificationSequence" in item else shared
        reference = _source_image(item)
        frame = reference.get("ReferencedFrameNumber")
        yield (
            holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber,
            (reference.ReferencedSOPInstanceUID, None if frame is None else int(frame)),
        )


def _source_image(frame: Dataset) -> Dataset:
    """The reference to the source image in a frame's functional groups."""
    reference: Dataset = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return reference


def _key(image: SourceImage) -> _ImageKey:
    return image.sop_instance_uid, image.frame
