"""What a checkpoint must say about itself so that another program can feed it correctly."""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

Architecture: TypeAlias = Literal["compact", "swin_unetr", "unet", "unetpp", "dints"]
PatchMerging: TypeAlias = Literal["complete", "duplicated"]


class ModelConfig(BaseModel):
    """How to build the network and how its input is prepared. Kept in the checkpoint, copied into the bundle.

    `channels` is for `compact` alone. `feature_size` is the number of decoder channels of the other architectures,
    which sets all their widths; None: as published. `patch_merging` is for `swin_unetr`: which corners of a block are
    joined, `complete` for new training, `duplicated` for published weights.
    `spacing_mm` is per axis of the RAS grid; HU are clipped to `intensity_range_hu` and mapped linearly to
    `output_range`.
    `roi_size` is the sliding window in voxels, each a multiple of `size_multiple`. A scan lower than it has
    `continued_planes` copies of its first and last plane around it at inference, before background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "compact"
    channels: tuple[int, ...] = (32, 64, 96, 160)
    feature_size: PositiveInt | None = None
    patch_merging: PatchMerging = "complete"
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    intensity_range_hu: tuple[float, float] = (-1000.0, 1000.0)
    output_range: tuple[float, float] = (-1.0, 1.0)
    interpolation: str = "linear_antialias"
    foreground_above_hu: float | None = -300.0
    roi_size: tuple[int, int, int] = (96, 96, 96)
    overlap: float = 0.5
    continued_planes: NonNegativeInt = 0
