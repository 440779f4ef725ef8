"""What a caller may choose about one segmentation."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]


class SegmentationRequest(BaseModel):
    """The caller's choices; None leaves a choice to the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    labels: tuple[LabelName, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="The labels to segment, by name; all labels of the model when absent.",
    )
    overlap: float | None = Field(
        default=None,
        ge=0.0,
        le=0.9,
        description="Overlap of neighbouring windows, as a fraction of a window; the model's own when absent.",
    )

    @field_validator("labels")
    @classmethod
    def _labels_are_unique(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) != len(labels):
            raise ValueError("A label is named twice.")
        return labels
