"""The body of `POST /v1/jobs` as the OpenAPI document describes it: FastAPI cannot, since the upload is streamed."""

from collections.abc import Iterable
from typing import Any

from service.api.references import CALLBACK_DESCRIPTION, JSON
from service.api.submission import BATCH_ID_PATTERN, Handling
from service.callbacks import MAX_URL_LENGTH
from service.jobs.job import Priority
from service.request import ON_DEMAND_OUTPUTS, Mode, Output, PostProcessing, SegType


def _listed(outputs: Iterable[Output]) -> str:
    return ", ".join(f"`{output.value}`" for output in outputs)


UPLOAD_FORM: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["files"],
                "additionalProperties": False,
                "properties": {
                    "files": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                        "description": "The study: one .nii or .nii.gz file, one zip, or all files of a DICOM study.",
                    },
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "The same, for clients that send a single file under this name.",
                    },
                    "model": {
                        "type": "string",
                        "description": "Id or name of a model (`GET /v1/models`); the default model otherwise.",
                        "example": "viscera-compact",
                    },
                    "targets": {
                        "type": "string",
                        "description": "What to segment: names of labels, groups (`organs`, `tumors`, `cysts`, "
                        "`lesions`, `all`) or SNOMED CT codes, comma separated or in repeated fields; all labels "
                        "otherwise.",
                        "example": "liver,tumors",
                    },
                    "mode": {
                        "type": "string",
                        "enum": [mode.value for mode in Mode],
                        "default": Mode.ACCURATE.value,
                        "description": "Speed against accuracy: how far neighbouring windows overlap.",
                    },
                    "overlap": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 0.9,
                        "description": "Overlap of neighbouring windows; that of the mode otherwise.",
                        "example": 0.5,
                    },
                    "postprocessing": {
                        "type": "string",
                        "enum": [choice.value for choice in PostProcessing],
                        "default": PostProcessing.VISCERA.value,
                        "description": "Rules that clean the masks: ours, the published implementation's, or none.",
                    },
                    "outputs": {
                        "type": "string",
                        "description": "Files to write beside findings.json, comma separated or in repeated fields: "
                        + _listed(Output)
                        + f". All but {_listed(ON_DEMAND_OUTPUTS)} otherwise. `seg`, `sr`, `rtstruct` and "
                        "`encapsulated_pdf` are DICOM objects and need DICOM input: asked for by name with a NIfTI, "
                        "they fail the job with `output-not-possible`.",
                        "example": "seg,sr,rtstruct",
                    },
                    "seg_type": {
                        "type": "string",
                        "enum": [kind.value for kind in SegType],
                        "default": SegType.BINARY.value,
                        "description": "Type of the DICOM SEG of organs; that of lesions is always binary.",
                    },
                    "deidentify": {
                        "type": "boolean",
                        "default": False,
                        "description": "Leave patient, study identifiers and dates out of the DICOM objects.",
                    },
                    "callback_url": {
                        "type": "string",
                        "maxLength": MAX_URL_LENGTH,
                        "description": CALLBACK_DESCRIPTION,
                        "example": "https://pacs.example.org/hooks/viscera",
                    },
                    "series": {
                        "type": "string",
                        "pattern": "^[0-9.]{1,64}$",
                        "description": "SeriesInstanceUID of the CT series to segment (DICOM only); chosen by rule "
                        "otherwise.",
                        "example": "1.2.840.113619.2.55.3.604688119.971.1",
                    },
                    "push": {
                        "type": "string",
                        "description": "Names of peers in the setting `VISCERA_PEERS` that get the DICOM results, "
                        "comma separated or in repeated fields.",
                        "example": "pacs",
                    },
                    "priority": {
                        "type": "string",
                        "enum": [priority.value for priority in Priority],
                        "default": Priority.ROUTINE.value,
                        "description": Handling.model_fields["priority"].description,
                    },
                    "reuse": {
                        "type": "boolean",
                        "default": True,
                        "description": Handling.model_fields["reuse"].description,
                    },
                    "batch_id": {
                        "type": "string",
                        "pattern": BATCH_ID_PATTERN,
                        "description": Handling.model_fields["batch_id"].description,
                        "example": "trial-7",
                    },
                    "time_limit_seconds": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "description": Handling.model_fields["time_limit_seconds"].description,
                        "example": 600,
                    },
                },
            },
            "encoding": {"files": {"contentType": "application/octet-stream"}},
        },
        JSON: {"schema": {"$ref": "#/components/schemas/ReferencedStudy"}},
    },
}
