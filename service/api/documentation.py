"""The OpenAPI document of the application, as it is served and as `openapi.yaml` holds it."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.examples import EXAMPLES
from service.api.problems import Problem
from service.api.references import ReferencedStudy

REF_TEMPLATE = "#/components/schemas/{model}"
DESCRIPTION = """\
A CT study (DICOM or NIfTI) goes in; masks of organs and lesions, and a JSON of findings come out.

Submit with `POST /v1/jobs`; follow the job's address by polling, by requests that wait (`?wait=30`), by server-sent
events or by a webhook; then fetch its findings and artifacts. Each request carries an API key, or a token of the
settings' issuer, as `Authorization: Bearer`.

Errors are RFC 9457 problem documents; the page at a problem's `type` explains its kind.

Research use only. Not a medical device.
"""
TAGS = [
    {"name": "jobs", "description": "Submit studies and follow the work on them."},
    {"name": "results", "description": "What a succeeded job has found and written."},
    {"name": "dicomweb", "description": "Studies from a PACS, by STOW-RS."},
    {"name": "models", "description": "What jobs can ask for."},
    {"name": "health", "description": "For load balancers and operators; open to everyone."},
    {"name": "operation", "description": "For monitoring."},
]


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document; made once per application.

    FastAPI documents its own form of validation error (422) on each route with a parameter; here such an error is the
    problem `invalid-request` (400), which a route that can answer it documents itself.
    """
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS)
    schemas = document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            _drop_framework_validation_error(operation["responses"])
            _add_examples(operation["responses"])
            operation["responses"] = dict(sorted(operation["responses"].items()))
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    # These are not the type of a parameter or an answer of any route.
    for model in (Problem, ReferencedStudy):
        schema = model.model_json_schema(ref_template=REF_TEMPLATE)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    app.openapi_schema = document
    return document


def _add_examples(responses: dict[str, Any]) -> None:
    for response in responses.values():
        content = response.get("content", {}).get("application/json", {})
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name in EXAMPLES:
            content["example"] = EXAMPLES[name]


def _drop_framework_validation_error(responses: dict[str, Any]) -> None:
    content = responses.get("422", {}).get("content", {})
    if "HTTPValidationError" in str(content.pop("application/json", "")) and not content:
        del responses["422"]
