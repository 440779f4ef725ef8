"""Which files a result will hold: what the caller asked for, as far as the input allows it.

It is decided from the headers, before the network runs: a file that cannot be written is refused in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from service.errors import OutputNotPossible
from service.imaging.dicom_source import DicomSource, read_source
from service.imaging.nifti import NiftiSeries
from service.imaging.study import Series
from service.imaging.volume import Notice, Volume
from service.reporting.schema import Findings, FindingsWarning, LesionFinding
from service.request import DEFAULT_OUTPUTS, DICOM_OUTPUTS, Output, SegmentationRequest, SegType

Task = tuple[tuple[str, ...], Callable[[], None]]
"""The names of some files, and what writes them."""

DICOM_FOLDER: Final = "dicom"
"""Where the DICOM objects of a result lie."""

REPORTS: Final = frozenset({Output.HTML, Output.PDF, Output.ENCAPSULATED_PDF})
"""Those that show the key images."""

MOST_KEY_IMAGES: Final = 50
"""Lesions that are pictured, the largest; noise can make thousands."""

KEY_IMAGES_LEFT_OUT: Final = "key-images-left-out"
"""The code of the warning that there are more."""


@dataclass(frozen=True)
class OutputPlan:
    """The files to write; `source` is what DICOM objects refer to, None when none are written."""

    wanted: frozenset[Output] = DEFAULT_OUTPUTS - DICOM_OUTPUTS
    source: DicomSource | None = None
    seg_type: SegType = SegType.BINARY
    deidentify: bool = False
    notices: tuple[Notice, ...] = ()

    def noted_on(self, volume: Volume) -> Volume:
        """The volume with what the reader of the result should know about its files."""
        return replace(volume, notices=volume.notices + self.notices)

    def noted_in(self, findings: Findings) -> Findings:
        """The findings with a warning where some of their lesions will have no key image."""
        left_out = len(findings.lesions) - MOST_KEY_IMAGES
        if left_out <= 0 or not self.wanted & {Output.KEY_IMAGES, *REPORTS}:
            return findings
        warning = FindingsWarning(
            code=KEY_IMAGES_LEFT_OUT,
            message=f"The {MOST_KEY_IMAGES} largest lesions have a key image; {left_out} smaller ones have none.",
        )
        return findings.model_copy(update={"warnings": (*findings.warnings, warning)})


NO_DICOM: Final = OutputPlan()
"""All files that every input allows."""


def pictured_lesions(findings: Findings) -> tuple[LesionFinding, ...]:
    """The lesions that get a key image, in the order of the findings: the largest by volume."""
    largest = sorted(findings.lesions, key=lambda lesion: -lesion.volume_ml)[:MOST_KEY_IMAGES]
    ids = {lesion.id for lesion in largest}
    return tuple(lesion for lesion in findings.lesions if lesion.id in ids)


def plan_outputs(request: SegmentationRequest, series: Series) -> OutputPlan:
    """What will be written for a series whose headers are still on the disk.

    A caller who names no outputs gets the DICOM objects where they are possible; a DICOM series without the UIDs they
    need is noted, a NIfTI is not: nobody expects them there.

    Raises:
        OutputNotPossible: a DICOM object was asked for by name and cannot be written for this input.
    """
    wanted = DEFAULT_OUTPUTS if request.outputs is None else frozenset(request.outputs)
    if not wanted & DICOM_OUTPUTS:
        return OutputPlan(wanted)
    try:
        source = read_source(series)
    except OutputNotPossible as impossible:
        if request.outputs is not None:
            raise
        notices = () if isinstance(series, NiftiSeries) else (Notice("dicom-left-out", impossible.detail),)
        return OutputPlan(wanted - DICOM_OUTPUTS, notices=notices)
    return OutputPlan(wanted, source, request.seg_type, request.deidentify, source.notices)
