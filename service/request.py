"""What a caller may choose about one segmentation."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, field_validator

MAX_TARGETS = 64
"""As many as a model can have labels: each can be asked for by its name."""

Target = Annotated[str, StringConstraints(pattern=r"^[^\s,]{1,80}$")]


class PostProcessing(StrEnum):
    """Which of a model's rules clean its masks."""

    VISCERA = "viscera"  #: ours: every lesion type within its hosts, each lung for itself
    REFERENCE = "reference"  #: those of the published implementation, without its crashes
    NONE = "none"  #: thresholded probabilities as they are


class Mode(StrEnum):
    """How closely the windows lie, so how long the network runs; each mode's agreement is in docs/performance.md."""

    ACCURATE = "accurate"  #: as the model's bundle states, which is what its figures were measured with
    BALANCED = "balanced"  #: a quarter of a window overlaps
    FAST = "fast"  #: a tenth of a window overlaps


_OVERLAP: dict[Mode, float | None] = {Mode.ACCURATE: None, Mode.BALANCED: 0.25, Mode.FAST: 0.1}


class Output(StrEnum):
    """A kind of file that a result can hold; findings.json is always there."""

    LABEL_MAP = "label_map"  #: segmentation.nii.gz
    MASKS = "masks"  #: a NIfTI mask for each label
    OVERVIEW = "overview"  #: overview.png
    KEY_IMAGES = "key_images"  #: a picture of each lesion with its diameters
    PREVIEW = "preview"  #: scan and label map on a coarse grid, which the page shows
    CSV = "csv"  #: findings.csv
    HTML = "html"  #: report.html, with its pictures inside
    PDF = "pdf"  #: report.pdf
    SEG = "seg"  #: DICOM Segmentation objects
    SR = "sr"  #: a DICOM measurement report; it refers to the segments and brings `seg` with it
    SCAN = "scan"  #: ct.nii.gz: the scan itself in HU, on its own grid
    RTSTRUCT = "rtstruct"  #: a DICOM RT Structure Set
    ENCAPSULATED_PDF = "encapsulated_pdf"  #: report.pdf as a DICOM object


DICOM_OUTPUTS = frozenset({Output.SEG, Output.SR, Output.RTSTRUCT, Output.ENCAPSULATED_PDF})
"""Those that need DICOM input: they join its study."""

ON_DEMAND_OUTPUTS = (Output.SCAN, Output.RTSTRUCT, Output.ENCAPSULATED_PDF)
"""Those that are written for callers who ask for them by name only."""

DEFAULT_OUTPUTS = frozenset(Output) - frozenset(ON_DEMAND_OUTPUTS)
"""What is written when the caller does not say; of the DICOM objects only for DICOM input."""


class SegType(StrEnum):
    """How a DICOM Segmentation of organs holds its segments; lesions overlap and are always BINARY."""

    BINARY = "binary"  #: one bit per voxel and organ: overlaps are kept, every viewer reads it
    LABELMAP = "labelmap"  #: one number per voxel: smaller; where organs overlap, the smaller one shows


class SegmentationRequest(BaseModel):
    """The caller's choices; None leaves a choice to the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    targets: tuple[Target, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TARGETS,
        description=(
            "What to segment: names of labels, groups (`organs`, `tumors`, `cysts`, `lesions`, `all`) or SNOMED CT "
            "codes of structures; all labels of the model when absent."
        ),
        examples=[["liver", "tumors", "SCT:64033007"]],
    )
    mode: Mode = Field(
        default=Mode.ACCURATE,
        description="Speed against accuracy: `accurate` (windows overlap as the model states), `balanced` (0.25) or "
        "`fast` (0.1).",
    )
    overlap: float | None = Field(
        default=None,
        ge=0.0,
        le=0.9,
        description="Overlap of neighbouring windows, as a fraction of a window; that of the mode when absent.",
    )
    postprocessing: PostProcessing = Field(
        default=PostProcessing.VISCERA,
        description="Rules that clean the masks: `viscera`, `reference` (the published implementation's), or `none`.",
    )

    series: str | None = Field(
        default=None,
        pattern=r"^[0-9.]{1,64}$",
        description="SeriesInstanceUID of the CT series to segment (DICOM only); chosen by rule when absent.",
        examples=["1.2.840.113619.2.55.3.604688119.971.1"],
    )
    outputs: tuple[Output, ...] | None = Field(
        default=None,
        min_length=1,
        description=(
            "Which files to write beside findings.json: `label_map`, `masks`, `overview`, `key_images`, `preview`, "
            "`csv`, `html`, `pdf` and, for DICOM input, `seg`, `sr` (brings `seg` with it), `rtstruct` and "
            "`encapsulated_pdf`; all but the last two when absent."
        ),
        examples=[["seg", "sr", "rtstruct"]],
    )
    seg_type: SegType = Field(
        default=SegType.BINARY,
        description="Type of the DICOM SEG of organs: `binary` or `labelmap`. That of lesions is always binary.",
    )
    deidentify: bool = Field(
        default=False,
        description="Leave patient, study identifiers and dates out of the DICOM objects (PS3.15 Basic Profile); UIDs "
        "are kept, so that the objects still lie on their images.",
    )

    @property
    def window_overlap(self) -> float | None:
        """The overlap asked for, by itself or with the mode; None: the bundle's."""
        return _OVERLAP[self.mode] if self.overlap is None else self.overlap

    @property
    def mask_settings(self) -> dict[str, JsonValue]:
        """The choices that the masks depend on, as JSON."""
        return self.model_dump(mode="json", exclude={"outputs", "seg_type", "deidentify"})

    @field_validator("targets", "outputs")
    @classmethod
    def _each_is_named_once(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            raise ValueError("A name is given twice.")
        return names
