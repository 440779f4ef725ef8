"""manifest.json: all that the service knows about a model, as validated data.

The models are frozen; one that exists is valid. JSON Schema of the same: `bundle.schema.json` in each bundle.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from service.request import PostProcessing

SCHEMA_VERSION = 1
MAX_LABELS = 64
"""A mask of all labels is one unsigned integer per voxel, a bit for each label."""

MANIFEST_FILE = "manifest.json"
HEAD_FILE = "head.safetensors"
SAMPLE_FILE = "sample.npz"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([.+-][0-9A-Za-z.+-]{1,32})?$")]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Flat: a bundle has no folders, so a name can neither climb out of it nor hide in it.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
Byte = Annotated[int, Field(ge=0, le=255)]
Dice = Annotated[float, Field(ge=0.0, le=1.0)]
Millimetres = Annotated[float, Field(gt=0.0, le=100.0)]
WindowEdge = Annotated[int, Field(ge=16, le=512, multiple_of=16)]
Color = tuple[Byte, Byte, Byte]


class _Part(BaseModel):
    """What every part of the manifest has in common: frozen, finite numbers, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LabelKind(StrEnum):
    """What sort of structure a label marks."""

    ORGAN = "organ"  #: an anatomical structure
    TUMOR = "tumor"  #: a neoplasm; overlaps its host organ
    CYST = "cyst"  #: a fluid-filled lesion; overlaps its host organ

    @property
    def is_lesion(self) -> bool:
        """Whether it is found inside an organ and reported one by one."""
        return self is not LabelKind.ORGAN


class Code(_Part):
    """A coded concept, as in DICOM's Code Sequence Macro; `SCT` is SNOMED CT."""

    scheme: Annotated[str, StringConstraints(min_length=1, max_length=16)]
    value: Annotated[str, StringConstraints(min_length=1, max_length=16)]
    meaning: Annotated[str, StringConstraints(min_length=1, max_length=64)]


class KeepLargest(_Part):
    """Keep the `count` largest 26-connected components.

    With `cut_pieces_ml`, keep beside them what the scan may have cut off: where one of them reaches the first or last
    plane of the scan, the components of at least so many millilitres that reach that plane too.
    """

    rule: Literal["keep_largest"] = "keep_largest"
    count: Annotated[int, Field(ge=1)] = 1
    cut_pieces_ml: Annotated[float, Field(gt=0.0)] | None = None


class WithinHosts(_Part):
    """Keep the voxels inside the union of the hosts, after that was closed and then dilated (boxes, radii in mm).

    The hosts' finished masks are meant; with `components`, that many of the largest 26-connected components of the
    union of their masks as predicted.
    """

    rule: Literal["within_hosts"] = "within_hosts"
    closing_mm: Annotated[float, Field(ge=0.0, le=50.0)] = 0.0
    dilation_mm: Annotated[float, Field(ge=0.0, le=50.0)] = 0.0
    components: Annotated[int, Field(ge=1)] | None = None


class MinVolume(_Part):
    """Drop the 26-connected components smaller than `ml` millilitres."""

    rule: Literal["min_volume"] = "min_volume"
    ml: Annotated[float, Field(gt=0.0)]


class MinPeak(_Part):
    """Drop the 26-connected components whose probability is nowhere above `probability`."""

    rule: Literal["min_peak"] = "min_peak"
    probability: Annotated[float, Field(gt=0.0, lt=1.0)]


class MaxComponents(_Part):
    """Keep at most `count` 26-connected components, the largest ones."""

    rule: Literal["max_components"] = "max_components"
    count: Annotated[int, Field(ge=1)]


class SideOfPair(_Part):
    """Of this label and `partner` as predicted, joined, the component on this label's `side`.

    The two largest 26-connected components are told apart by their mean position along the patient's left-right axis.
    With fewer than two there is nothing to tell apart, and nothing is kept.
    """

    rule: Literal["side_of_pair"] = "side_of_pair"
    partner: LabelName
    side: Literal["left", "right"]


class CutBelow(_Part):
    """Drop the slices below the lowest slice of the finished mask of `organ`; an empty organ cuts nothing."""

    rule: Literal["cut_below"] = "cut_below"
    organ: LabelName


Rule = Annotated[
    KeepLargest | WithinHosts | MinVolume | MinPeak | MaxComponents | SideOfPair | CutBelow, Field(discriminator="rule")
]


class RuleSets(_Part):
    """The post-processing of one label, by the name that a request chooses it by; rules run in their order."""

    viscera: tuple[Rule, ...] = ()
    reference: tuple[Rule, ...] = ()

    def chosen(self, postprocessing: str) -> tuple[Rule, ...]:
        """The rules of that name; no rules for `none`."""
        return {"viscera": self.viscera, "reference": self.reference, "none": ()}[postprocessing]


class Label(_Part):
    """One output of the model.

    `type` names an organ itself; a lesion's `type` is its morphology and `anatomic_region` its site.
    `hosts` are the organs a lesion may lie in, the likeliest first. `threshold` is on the probability: voxels above it.
    """

    index: Annotated[int, Field(ge=1, le=65535)]
    name: LabelName
    display_name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    kind: LabelKind
    hosts: tuple[LabelName, ...] = ()
    color: Color
    category: Code
    type: Code
    laterality: Code | None = None
    anatomic_region: Code | None = None
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    postprocessing: RuleSets = RuleSets()

    def companions(self, postprocessing: str) -> frozenset[str]:
        """The other labels that its rules of that name look at."""
        names: set[str] = set()
        for rule in self.postprocessing.chosen(postprocessing):
            match rule:
                case WithinHosts():
                    names |= set(self.hosts)
                case SideOfPair(partner=partner):
                    names.add(partner)
                case CutBelow(organ=organ):
                    names.add(organ)
        return frozenset(names)


class FileEntry(_Part):
    """What a file of the bundle must be, byte for byte."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class ForegroundCrop(_Part):
    """Only the bounding box of what is above `above_hu` goes through the network."""

    above_hu: float


class Interpolation(StrEnum):
    """How values between voxel centres are made."""

    NEAREST = "nearest"  #: the value of the closest voxel
    LINEAR = "linear"  #: trilinear, without a filter
    LINEAR_ANTIALIAS = "linear_antialias"  #: trilinear; the triangle is as wide as the coarser spacing


class Preprocessing(_Part):
    """From HU to what the network was trained on.

    `intensity_range_hu` is clipped and mapped linearly onto `output_range`; windows are padded with its lower end.
    """

    orientation: Literal["RAS"]
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres]
    intensity_range_hu: tuple[float, float]
    output_range: tuple[float, float]
    interpolation: Literal[Interpolation.LINEAR, Interpolation.LINEAR_ANTIALIAS]
    foreground_crop: ForegroundCrop | None

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for low, high in (self.intensity_range_hu, self.output_range):
            if low >= high:
                raise ValueError(f"The range {low:g} to {high:g} does not rise.")
        return self


class SlidingWindow(_Part):
    """How windows (voxels of the model grid, axes x, y, z) cover the volume and how their logits are blended.

    A scan lower than a window goes on beyond its first and last plane for `continued_planes` more, copies of that
    plane; then there is background. A body does not end where its scan does.
    """

    roi_size: tuple[WindowEdge, WindowEdge, WindowEdge]
    overlap: Annotated[float, Field(ge=0.0, le=0.9)]
    importance: Literal["gaussian"]
    sigma_scale: Annotated[float, Field(gt=0.0, le=1.0)]
    continued_planes: Annotated[int, Field(ge=0, le=64)] = 0

    def with_overlap(self, overlap: float | None) -> Self:
        """The same windows with another overlap (0 to 0.9); None keeps the bundle's."""
        return self if overlap is None else self.model_validate({**self.model_dump(), "overlap": overlap})


class Backbone(_Part):
    """The network in front of the head; its window edges are multiples of 16 voxels."""

    architecture: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    feature_channels: Literal[8]  # the 153 head parameters per label have this number built in
    pooled_channels: Literal[256]
    feature_stride: Literal[1, 2, 4, 8, 16]
    parameters: Annotated[int, Field(ge=0)]


class MaskAgreement(_Part):
    """Masks of an engine against those of the trained network, on windows of a scan or phantom.

    `dice` is by label, without those that neither predicts. `tolerance` None: masks do not decide.
    """

    source: Literal["scan", "phantom"]
    windows: Annotated[int, Field(ge=1)]
    tolerance: Dice | None
    lowest_dice: Dice | None
    dice: dict[LabelName, Dice]


class Parity(_Part):
    """How far an engine was from the trained network when the bundle was written.

    `max_relative_error` is of logits; its `tolerance` None: the masks decide. Seconds are of the backbone.
    """

    engine: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    max_relative_error: Annotated[float, Field(ge=0.0)]
    tolerance: Annotated[float, Field(gt=0.0)] | None
    max_probability_error: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    masks: MaskAgreement | None = None
    seconds_per_window: Annotated[float, Field(ge=0.0)] | None = None
    torch_seconds_per_window: Annotated[float, Field(ge=0.0)] | None = None


class Precision(_Part):
    """One form of the backbone: the file that holds it, and the engines that it is offered for.

    `hint` is the number format that the engine is asked to compute in; None: that of the file.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]{1,16}$")]
    file: FileName
    hint: Literal["bf16"] | None = None
    parity: Annotated[tuple[Parity, ...], Field(min_length=1)]

    @property
    def engines(self) -> tuple[str, ...]:
        """Names of the engines that it was measured on and holds."""
        return tuple(parity.engine for parity in self.parity)

    def parity_of(self, engine: str) -> Parity | None:
        """What was measured on that engine; None: it is not offered for it."""
        return next((parity for parity in self.parity if parity.engine == engine), None)


class TextEncoder(_Part):
    """What turned label names into the numbers that were folded into the head.

    `weights_sha256` is of the encoder's file of weights and `names` filled the template, row by row; None and () where
    the text features did not state them.
    """

    encoder: Text
    prompt_template: Text
    source: Text
    embedding_sha256: Sha256
    weights_sha256: Sha256 | None = None
    names: Annotated[tuple[Text, ...], Field(max_length=MAX_LABELS)] = ()


class BaseBundle(_Part):
    """The bundle that a label was appended to; `sha256` is of its manifest."""

    name: Name
    version: Version
    sha256: Sha256


class AddedText(_Part):
    """The text of one appended label; encoder and template are those of the other labels."""

    name: Text
    source: Text
    embedding_sha256: Sha256
    weights_sha256: Sha256 | None


class Addition(_Part):
    """How a label came to a bundle that was there before: the backbone is the base's, the head has one row more.

    `trained` is false for a label whose row follows from its text alone. `heads` says whether the rows of the other
    labels are the base's, or those of the checkpoint.
    """

    label: LabelName
    base: BaseBundle
    heads: Literal["kept", "replaced"]
    trained: bool
    checkpoint_sha256: Sha256
    text: AddedText


class Manifest(_Part):
    """The whole of manifest.json. The order of `labels` is the order of the head's rows and of the mask's bits."""

    schema_version: Literal[1]
    name: Name
    version: Version
    created: AwareDatetime
    description: Text
    intended_use: Text
    licence: Text
    files: dict[FileName, FileEntry]
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=MAX_LABELS)]
    preprocessing: Preprocessing
    sliding_window: SlidingWindow
    mask_interpolation: Literal[Interpolation.LINEAR, Interpolation.NEAREST]
    backbone: Backbone
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    text: TextEncoder
    training: dict[str, Any]
    additions: tuple[Addition, ...] = ()

    def mask_interpolation_with(self, postprocessing: str) -> Interpolation:
        """How masks reach the source grid: with `viscera` as the bundle says. `reference`, and `none`, which is held
        against it, take the closest voxel as the released code does (`Invertd` with nearest)."""
        return self.mask_interpolation if postprocessing == PostProcessing.VISCERA else Interpolation.NEAREST

    @model_validator(mode="after")
    def _labels_agree(self) -> Self:
        names = [label.name for label in self.labels]
        if len(set(names)) != len(names):
            raise ValueError("Two labels have the same name.")
        if len({label.index for label in self.labels}) != len(names):
            raise ValueError("Two labels have the same index.")
        if strange := sorted({addition.label for addition in self.additions} - set(names)):
            raise ValueError(f"The appended label {strange[0]} is not among the labels.")
        organs = {label.name for label in self.labels if not label.kind.is_lesion}
        for label in self.labels:
            strangers = [host for host in label.hosts if host not in organs]
            if strangers:
                raise ValueError(f"Label {label.name}: host {strangers[0]} is not an organ of this bundle.")
            if label.hosts and not label.kind.is_lesion:
                raise ValueError(f"Label {label.name}: an organ has no hosts.")
            for rules in (label.postprocessing.viscera, label.postprocessing.reference):
                if any(isinstance(rule, WithinHosts) for rule in rules) and not label.hosts:
                    raise ValueError(f"Label {label.name}: within_hosts needs a host.")
            for companion in label.companions("viscera") | label.companions("reference"):
                if companion not in organs or companion == label.name:
                    raise ValueError(
                        f"Label {label.name}: a rule looks at {companion}, not another organ of this bundle."
                    )
        return self

    @model_validator(mode="after")
    def _needed_files_are_listed(self) -> Self:
        if MANIFEST_FILE in self.files:
            raise ValueError(f"{MANIFEST_FILE} cannot state its own hash.")
        for needed in (HEAD_FILE, SAMPLE_FILE, *(precision.file for precision in self.precisions)):
            if needed not in self.files:
                raise ValueError(f"{needed} is not among the files.")
        return self

    def label(self, name: str) -> Label:
        """The label of that name; KeyError when the bundle has none."""
        for label in self.labels:
            if label.name == name:
                return label
        raise KeyError(name)
