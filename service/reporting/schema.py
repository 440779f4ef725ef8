"""The findings JSON: what was looked for in a CT, what was found, and how it was measured.

Pure pydantic: the API publishes these models and must not import numpy for it.

Conventions of every field:

- The unit is the end of the name: `_ml`, `_mm`, `_hu`, `_seconds`. `_voxel` are zero-based indices (i, j, k) of the
  source grid, that is of the masks; `_lps_mm` are patient coordinates as in DICOM (x to the Left, y to Posterior, z
  to Superior).
- Rounding, done once, when the finding is made: ml to 4 decimals, mm and voxel positions to 2, HU to 1, probabilities
  and fractions to 3, seconds to 3. Spacing and affine are facts of the input and keep 6.
- `null` means "does not apply or cannot be known", never zero: an absent organ has volume 0.0 and mean_hu null.
- Lists follow the bundle's label order; the lesions of a label come largest first.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

FINDINGS_SCHEMA_VERSION: Final = 1

RESEARCH_USE_ONLY = (
    "Research use only. Not a medical device: not for diagnosis, treatment or any other clinical decision."
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 as 64 lower-case hexadecimal digits.")]
Point = Annotated[tuple[float, float, float], Field(description="Three coordinates.")]
Index = Annotated[tuple[int, int, int], Field(description="Voxel index (i, j, k), zero-based.")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]


class _Part(BaseModel):
    """A frozen piece of the findings; unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Side(StrEnum):
    """A side of the scanned volume, named by the patient direction it faces."""

    LEFT = "left"
    RIGHT = "right"
    ANTERIOR = "anterior"
    POSTERIOR = "posterior"
    SUPERIOR = "superior"
    INFERIOR = "inferior"


class VoxelAxis(StrEnum):
    """An axis of the voxel array, in the order of the NIfTI file."""

    I = "i"  # noqa: E741  # the field's own name for the axis
    J = "j"
    K = "k"


class CodedConcept(_Part):
    """A concept in a coding scheme, as DICOM writes it (PS3.3 section 8)."""

    scheme: str = Field(description="Coding scheme designator; SCT is SNOMED CT.", examples=["SCT"])
    value: str = Field(description="Code value.", examples=["10200004"])
    meaning: str = Field(description="Human-readable meaning of the code.", examples=["Liver"])


class LabelCodes(_Part):
    """What a label means in a terminology, with the attributes of a DICOM segment."""

    category: CodedConcept = Field(description="Segmented property category.")
    type: CodedConcept = Field(description="Segmented property type.")
    laterality: CodedConcept | None = Field(default=None, description="Right or left, for one of a pair.")
    anatomic_region: CodedConcept | None = Field(default=None, description="Site of a lesion; null for an organ.")


class BoundingBox(_Part):
    """The smallest box of voxels around a mask: `start` is inside, `stop` is one past the end."""

    start: Index = Field(description="First voxel (i, j, k), inclusive.", examples=[[112, 80, 30]])
    stop: Index = Field(description="Last voxel plus one (i, j, k), exclusive.", examples=[[254, 201, 77]])


class OrganFinding(_Part):
    """One organ that was looked for, found or not."""

    label: str = Field(description="Label name in the bundle, also the mask's file name.", examples=["liver"])
    display_name: str = Field(description="Name for people.", examples=["Liver"])
    codes: LabelCodes = Field(description="Meaning in SNOMED CT.")
    present: bool = Field(description="Whether the mask has a voxel.")
    volume_ml: NonNegative = Field(
        description="Volume of the mask, lesions inside it included; 0 if absent.", examples=[1512.25]
    )
    mean_hu: float | None = Field(description="Mean of the source HU inside the mask.", examples=[104.2])
    sd_hu: float | None = Field(description="Standard deviation (population) of the same HU.", examples=[18.9])
    bounding_box_voxel: BoundingBox | None = Field(description="Box around the mask; null if absent.")
    cut_by_field_of_view: bool = Field(
        description="The mask touches the border of the volume: the organ may go on outside, "
        "its volume is a lower bound."
    )
    cut_sides: tuple[Side, ...] = Field(
        description="The sides of the volume that the mask touches.", examples=[["superior"]]
    )


class LesionFinding(_Part):
    """One lesion: a 26-connected component of a tumour or cyst mask on the source grid.

    Diameters are measured in the source slice where the longest diameter is largest, on the convex outline of the
    pixels' corners: the longest diameter is the largest distance between two outline points, the perpendicular one is
    the longest straight line inside the outline at a right angle to it. A single pixel has its two diagonals.
    """

    id: str = Field(description="Label and rank by volume, stable for the same masks.", examples=["liver_tumor-1"])
    label: str = Field(description="Label name in the bundle.", examples=["liver_tumor"])
    display_name: str = Field(description="Name of the label for people.", examples=["Liver tumor"])
    kind: str = Field(description="The label's kind in the bundle.", examples=["tumor", "cyst"])
    codes: LabelCodes = Field(description="Meaning in SNOMED CT.")
    host_organ: str | None = Field(
        description="The label's host with the most voxels in common; null if it touches none.", examples=["liver"]
    )
    host_overlap_fraction: Fraction = Field(description="Share of the lesion inside that host.", examples=[0.98])
    also_labelled: tuple[str, ...] = Field(
        description="Other lesion labels that hold a tenth or more of the same voxels: the model reads one region in "
        "two ways.",
        examples=[["kidney_cyst"]],
    )
    volume_ml: NonNegative = Field(description="Volume of the component.", examples=[8.1812])
    mean_hu: float = Field(description="Mean of the source HU inside the lesion.", examples=[61.0])
    sd_hu: NonNegative = Field(description="Standard deviation (population) of the same HU.", examples=[14.8])
    longest_axial_diameter_mm: NonNegative = Field(
        description="Longest diameter in the slice, as in RECIST 1.1.", examples=[27.41]
    )
    perpendicular_diameter_mm: NonNegative = Field(
        description="Longest diameter at a right angle to it in the same slice, as in WHO.", examples=[22.05]
    )
    longest_axis_lps_mm: tuple[Point, Point] = Field(description="The two ends of the longest diameter.")
    perpendicular_axis_lps_mm: tuple[Point, Point] = Field(description="The two ends of the perpendicular diameter.")
    slice_index: int = Field(
        ge=0, description="Index of the measured slice along `source.slice_axis`, zero-based.", examples=[41]
    )
    sop_instance_uid: str | None = Field(
        description="SOP Instance UID of the measured slice (DICOM input only).",
        examples=["2.25.329800735698586629295641978511506172918"],
    )
    centroid_lps_mm: Point = Field(
        description="Centre of mass in patient coordinates.", examples=[[-62.5, 14.2, -310.0]]
    )
    centroid_voxel: Point = Field(description="Centre of mass in voxel indices.", examples=[[311.4, 240.8, 41.2]])
    bounding_box_voxel: BoundingBox = Field(description="Box around the component.")
    cut_by_field_of_view: bool = Field(description="The lesion touches the border of the volume.")
    cut_sides: tuple[Side, ...] = Field(description="The sides of the volume that it touches.")
    mean_probability: Fraction | None = Field(
        description="Mean of the model's probability over the lesion's voxels. Not calibrated.", examples=[0.81]
    )
    max_probability: Fraction | None = Field(
        description="Largest probability of a voxel of the lesion. Not calibrated.", examples=[0.97]
    )


class LesionLabelSummary(_Part):
    """One kind of lesion that was looked for: tells "none found" from "not looked for"."""

    label: str = Field(description="Label name in the bundle.", examples=["liver_tumor"])
    display_name: str = Field(description="Name for people.", examples=["Liver tumor"])
    kind: str = Field(description="The label's kind in the bundle.", examples=["tumor"])
    codes: LabelCodes = Field(description="Meaning in SNOMED CT.")
    count: int = Field(ge=0, description="Number of lesions found; the largest 100 are listed.", examples=[2])
    total_volume_ml: NonNegative = Field(description="Volume of all of them together.", examples=[9.7031])


class FindingsWarning(_Part):
    """Something the reader should know before trusting a number."""

    code: str = Field(description="Stable code for programs.", examples=["organ-cut-by-field-of-view"])
    message: str = Field(description="One sentence for people, without patient data.")
    subject: str | None = Field(default=None, description="The label or lesion id it is about; null for the scan.")


class SourceSummary(_Part):
    """The grid of the input, which is also the grid of every mask."""

    format: str = Field(description="What the upload was.", examples=["dicom", "nifti"])
    shape: Index = Field(description="Number of voxels along (i, j, k).", examples=[[512, 512, 84]])
    spacing_mm: Point = Field(description="Distance of voxel centres along (i, j, k).", examples=[[0.78, 0.78, 2.5]])
    orientation: Annotated[
        tuple[str, str, str],
        Field(description="The patient direction nearest to growing i, j, k.", examples=[["L", "P", "S"]]),
    ]
    slice_axis: VoxelAxis = Field(
        description="The axis across the measured slices: k for DICOM, the one nearest to inferior-superior for NIfTI."
    )


class SeriesCandidate(_Part):
    """One stack of CT images of the upload: the one that was segmented, or why it was not."""

    series_uid: str | None = Field(
        description="SeriesInstanceUID; null where the files carry none.", examples=["1.2.840.113619.2.55.3.604.971.1"]
    )
    series_number: int | None = Field(description="SeriesNumber of the scanner.", examples=[3])
    images: int = Field(ge=0, description="Images of the stack, copies included.", examples=[128])
    chosen: bool = Field(description="Whether it was segmented.")
    reason: str = Field(
        description="Why it was taken, passed over or refused.", examples=["Taken by rule: its kernel is not sharp."]
    )
    plane: str | None = Field(description="Plane nearest to its slices.", examples=["axial", "sagittal", "coronal"])
    original: bool | None = Field(description="Reconstructed by the scanner, not derived from other images.")
    kernel: str | None = Field(description="Kind of the reconstruction kernel.", examples=["soft", "sharp", "unknown"])
    slices: int | None = Field(description="Slices of the volume, interpolated ones included.", examples=[128])
    slice_spacing_mm: float | None = Field(description="Distance of slices along their normal.", examples=[2.5])
    slice_thickness_mm: float | None = Field(description="SliceThickness of the header.", examples=[3.0])
    coverage_mm: float | None = Field(description="Extent along the slices' normal.", examples=[320.0])
    tilt_degrees: float | None = Field(description="Gantry tilt measured from the positions.", examples=[0.0])


class Severity(StrEnum):
    """How much a check of quality matters."""

    INFO = "info"  #: as it should be, or only for information
    WARNING = "warning"  #: some numbers are to be read with care
    SEVERE = "severe"  #: the result is likely wrong


class QualityCheck(_Part):
    """One check of the scan; every result has the same checks in the same order."""

    code: str = Field(description="Stable code for programs.", examples=["hu-plausibility"])
    severity: Severity = Field(description="How much it matters.")
    message: str = Field(description="One sentence for people, with what was measured, without patient data.")


class BundleReference(_Part):
    """The model that made the masks."""

    name: str = Field(examples=["viscera-compact"])
    version: str = Field(examples=["1.0.0"])
    sha256: Sha256 = Field(description="SHA-256 of the bundle's manifest, which holds those of all its files.")


class Provenance(_Part):
    """How to get the same result again: same input, bundle and settings give the same mask hash."""

    bundle: BundleReference = Field(description="The model bundle.")
    software: str = Field(default="viscera", description="The program that made this document.")
    software_version: str = Field(examples=["0.1.0"])
    engine: str = Field(description="Inference engine and, where it matters, its device.", examples=["openvino"])
    precision: str = Field(description="Precision of the backbone.", examples=["fp32"])
    settings: dict[str, JsonValue] = Field(
        description="The settings the masks depend on.",
        examples=[{"overlap": 0.5, "targets": None, "postprocessing": "viscera"}],
    )
    input_sha256: Sha256 = Field(
        description="SHA-256 of the decoded voxels and their geometry, whatever the packaging."
    )
    mask_sha256: Sha256 = Field(description="SHA-256 of all masks and their geometry.")
    created: datetime | None = Field(default=None, description="When the masks were made (UTC).")
    timings_seconds: dict[str, NonNegative] = Field(
        default_factory=dict,
        description="Wall-clock seconds per stage.",
        examples=[{"reading": 1.42, "inference": 11.9}],
    )


class Findings(_Part):
    """Everything measured on one CT. A finding is a computer's measurement, not a diagnosis."""

    schema_version: Literal[1] = Field(default=FINDINGS_SCHEMA_VERSION, description="Version of this document's form.")
    statement: str = Field(default=RESEARCH_USE_ONLY, description="The limit of the intended use.")
    source: SourceSummary = Field(description="The input's grid.")
    series: tuple[SeriesCandidate, ...] = Field(
        default=(), description="Stacks of CT images the scan was chosen from, it first (DICOM input only)."
    )
    quality: tuple[QualityCheck, ...] = Field(default=(), description="Checks of the scan.")
    organs: tuple[OrganFinding, ...] = Field(description="Every organ that was looked for, in the bundle's order.")
    lesion_labels: tuple[LesionLabelSummary, ...] = Field(description="Every kind of lesion that was looked for.")
    lesions: tuple[LesionFinding, ...] = Field(description="Every lesion found, by label, the largest first.")
    warnings: tuple[FindingsWarning, ...] = Field(description="From reading, inference and measuring.")
    provenance: Provenance = Field(description="How the result was made.")


class Artifact(_Part):
    """One file of a result."""

    name: str = Field(
        description="Path relative to the result, with forward slashes.",
        examples=["masks/liver.nii.gz", "overview.png"],
    )
    media_type: str = Field(examples=["application/gzip", "image/png", "application/json"])
    bytes: int = Field(ge=0, description="Size of the file.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")


def findings_json_schema() -> dict[str, JsonValue]:
    """JSON Schema (2020-12) of findings.json, as written."""
    return Findings.model_json_schema(mode="serialization")
