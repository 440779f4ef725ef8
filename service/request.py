"""What a caller may choose about one segmentation."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

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

    @property
    def window_overlap(self) -> float | None:
        """The overlap asked for, by itself or with the mode; None: the bundle's."""
        return _OVERLAP[self.mode] if self.overlap is None else self.overlap

    @field_validator("targets")
    @classmethod
    def _targets_are_unique(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and len(set(targets)) != len(targets):
            raise ValueError("A target is named twice.")
        return targets
