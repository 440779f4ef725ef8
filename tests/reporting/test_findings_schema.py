"""findings.json against its own schema."""

import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from service.reporting.findings import measure
from service.reporting.schema import RESEARCH_USE_ONLY, Findings, findings_json_schema
from tests.support.reporting import PROVENANCE, abdomen, scan


def test_a_document_follows_its_schema():
    document = json.loads(measure(*abdomen((6.0, 6.0, 8.0)), PROVENANCE).model_dump_json())
    schema = findings_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert document["schema_version"] == 1
    assert document["statement"] == RESEARCH_USE_ONLY
    assert "not a medical device" in document["statement"].lower()


def test_an_empty_document_follows_it_too():
    document = json.loads(measure(*scan(np.zeros((4, 4, 4), np.int16), {}), PROVENANCE).model_dump_json())
    jsonschema.Draft202012Validator(findings_json_schema()).validate(document)


def test_every_field_is_described():
    schema = findings_json_schema()
    undescribed = [
        f"{name}.{field}"
        for name, part in [("Findings", schema), *schema["$defs"].items()]
        for field, entry in part.get("properties", {}).items()
        if "description" not in entry and "examples" not in entry and "$ref" not in entry
    ]
    assert undescribed == []


def test_unknown_fields_and_versions_are_refused():
    document = json.loads(measure(*abdomen((10.0, 10.0, 10.0)), PROVENANCE).model_dump_json())
    with pytest.raises(ValidationError):
        Findings.model_validate({**document, "diagnosis": "none"})
    with pytest.raises(ValidationError):
        Findings.model_validate({**document, "schema_version": 2})


def test_numbers_are_rounded():
    findings = measure(*abdomen((3.3, 3.1, 4.7)), PROVENANCE)
    lesion = findings.lesions[0]
    for value, decimals in (
        (lesion.volume_ml, 4),
        (lesion.longest_axial_diameter_mm, 2),
        (lesion.centroid_lps_mm[0], 2),
        (lesion.mean_hu, 1),
        (lesion.mean_probability, 3),
    ):
        assert value == round(value, decimals)


def test_the_schema_needs_no_array_library():
    code = (
        "import sys, service.reporting.schema\n"
        "heavy = {'numpy', 'nibabel', 'scipy', 'torch', 'PIL', 'cc3d', 'pydicom'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
