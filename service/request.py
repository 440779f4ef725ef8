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
    overlap: float | None = Field(
        default=None,
        ge=0.0,
        le=0.9,
        description="Overlap of neighbouring windows, as a fraction of a window; the model's own when absent.",
    )
    postprocessing: PostProcessing = Field(
        default=PostProcessing.VISCERA,
        description="Rules that clean the masks: `viscera`, `reference` (the published implementation's), or `none`.",
    )

    @field_validator("targets")
    @classmethod
    def _targets_are_unique(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is not None and len(set(targets)) != len(targets):
            raise ValueError("A target is named twice.")
        return targets
