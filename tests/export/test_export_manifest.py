"""The manifest that is written satisfies both readers of its form: the JSON Schema and the service's own classes."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from model_export.bundle import write_bundle
from model_export.errors import CheckpointRefused, ManifestInvalid
from model_export.manifest import check_manifest, round_up, schema_text
from service.inference.bundle import open_bundle
from service.inference.manifest import Manifest
from training.checkpoint import Checkpoint
from training.labels import LABELS

Json = dict[str, Any]


def test_the_text_encoders_weights_and_the_names_are_stated_where_the_features_state_them(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    prompts = tuple(label.prompt for label in LABELS)
    text = replace(checkpoint.text, weights_sha256="ab" * 32, names=prompts)
    bundle = write_bundle(replace(checkpoint, text=text), tmp_path, name="viscera-small", version="1.0.0")
    manifest = open_bundle(bundle).manifest
    assert manifest.text.weights_sha256 == "ab" * 32
    assert manifest.text.names == prompts
    assert f"| text encoder's weights SHA-256 | `{'ab' * 32}` |" in (bundle / "MODEL_CARD.md").read_text()
    fewer = replace(checkpoint, text=replace(text, names=prompts[1:]))
    with pytest.raises(CheckpointRefused, match="features are of 31 names, the head has 32 rows"):
        write_bundle(fewer, tmp_path, name="viscera-small", version="1.0.1")


@pytest.fixture(scope="module")
def manifest(written_bundle: Path) -> Json:
    content: Json = json.loads((written_bundle / "manifest.json").read_text())
    return content


def test_schema_is_a_schema_and_lies_in_the_bundle(written_bundle: Path) -> None:
    schema = json.loads(schema_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads((written_bundle / "bundle.schema.json").read_text()) == schema


def test_schema_admits_no_unknown_key_except_in_provenance_and_names() -> None:
    schema = json.loads(schema_text())
    open_objects = {path for path, part in _objects("", schema) if part.get("additionalProperties") is not False}
    assert open_objects == {"/properties/files", "/properties/training", "/$defs/mask_agreement/properties/dice"}


def _objects(path: str, part: Any) -> list[tuple[str, Json]]:
    if isinstance(part, list):
        return [found for i, item in enumerate(part) for found in _objects(f"{path}/{i}", item)]
    if not isinstance(part, dict):
        return []
    own = [(path, part)] if part.get("type") == "object" else []
    return own + [found for key, item in part.items() for found in _objects(f"{path}/{key}", item)]


def test_written_manifest_satisfies_schema_and_service(manifest: Json) -> None:
    check_manifest(manifest)
    parsed = Manifest.model_validate(manifest)
    assert [label.name for label in parsed.labels] == [label.name for label in LABELS]
    assert parsed.label("kidney_cyst").companions("viscera") == {"kidney_right", "kidney_left"}
    assert parsed.label("kidney_cyst").companions("reference") == frozenset()
    assert json.loads(parsed.model_dump_json()) == manifest  # neither reader drops or invents anything


def test_values_come_from_the_checkpoint(manifest: Json, checkpoint: Checkpoint) -> None:
    assert manifest["preprocessing"] == {
        "orientation": "RAS",
        "spacing_mm": [2.0, 2.0, 2.0],
        "intensity_range_hu": [-1000.0, 1000.0],
        "output_range": [-1.0, 1.0],
        "interpolation": "linear_antialias",
        "foreground_crop": {"above_hu": -300.0},
    }
    assert manifest["sliding_window"]["roi_size"] == [48, 48, 64]
    assert manifest["backbone"]["feature_stride"] == 2
    assert manifest["text"]["embedding_sha256"] == checkpoint.text.sha256
    assert (manifest["text"]["weights_sha256"], manifest["text"]["names"]) == (None, [])
    assert manifest["training"] == {
        "data": "procedural phantoms, seeds 0 to 9",
        "steps": 7,
        "checkpoint_sha256": checkpoint.sha256,
    }
    tumor = manifest["labels"][26]
    assert tumor["name"] == "liver_tumor"
    assert tumor["type"] == {"scheme": "SCT", "value": "108369006", "meaning": "Neoplasm"}
    assert tumor["anatomic_region"]["meaning"] == "Liver"
    assert tumor["postprocessing"]["viscera"][1] == {"rule": "min_volume", "ml": 0.0675}
    assert tumor["postprocessing"]["reference"] == [
        {"rule": "within_hosts", "closing_mm": 3.0, "dilation_mm": 3.0, "components": 1}
    ]


def test_parity_is_stated_and_measured(manifest: Json) -> None:
    fp32 = manifest["precisions"][0]
    assert (fp32["name"], fp32["hint"]) == ("fp32", None)
    assert fp32["file"] == "backbone.onnx"
    assert {parity["engine"] for parity in fp32["parity"]} >= {"onnxruntime"}
    assert all(0.0 < parity["max_relative_error"] < 5e-5 for parity in fp32["parity"])
    assert all(parity["tolerance"] == 1e-4 for parity in fp32["parity"])


def _set(*keys: str | int, to: Any) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        part: Any = manifest
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (_set("schema_version", to=2), r"\$\.schema_version"),
        (_set("note", to="hello"), r"\$"),
        (_set("name", to="Viscera Compact"), r"\$\.name"),
        (_set("version", to="one"), r"\$\.version"),
        (_set("created", to="yesterday"), r"\$\.created"),
        (_set("files", "backbone.onnx", "sha256", to="AB"), r"sha256"),
        (_set("files", "../escape", to={"sha256": "0" * 64, "bytes": 1}), r"\$\.files"),
        (_set("labels", to=[]), r"\$\.labels"),
        (_set("labels", 0, "kind", to="bone"), r"labels\[0\]\.kind"),
        (_set("labels", 0, "color", to=[0, 0, 256]), r"labels\[0\]\.color"),
        (_set("labels", 0, "threshold", to=1.0), r"labels\[0\]\.threshold"),
        (_set("labels", 0, "postprocessing", "viscera", to=[{"rule": "erode"}]), r"postprocessing\.viscera\[0\]"),
        (_set("labels", 0, "postprocessing", "viscera", to=[{"rule": "min_volume", "ml": 0}]), r"viscera\[0\]"),
        (_set("labels", 0, "laterality", to="left"), r"labels\[0\]\.laterality"),
        (_set("preprocessing", "orientation", to="LPS"), r"\$\.preprocessing\.orientation"),
        (_set("preprocessing", "spacing_mm", to=[1.0, 1.0]), r"\$\.preprocessing\.spacing_mm"),
        (_set("preprocessing", "interpolation", to="cubic"), r"\$\.preprocessing\.interpolation"),
        (_set("sliding_window", "roi_size", to=[96, 96, 100]), r"\$\.sliding_window\.roi_size"),
        (_set("sliding_window", "overlap", to=1.0), r"\$\.sliding_window\.overlap"),
        (_set("mask_interpolation", to="cubic"), r"\$\.mask_interpolation"),
        (_set("backbone", "feature_channels", to=16), r"\$\.backbone\.feature_channels"),
        (_set("precisions", to=[]), r"\$\.precisions"),
        (_set("precisions", 0, "parity", to=[]), r"precisions\[0\]\.parity"),
        (_set("precisions", 0, "hint", to="fp8"), r"precisions\[0\]\.hint"),
        (_set("precisions", 0, "parity", 0, "masks", "dice", "liver", to=1.1), r"masks\.dice\.liver"),
        (_set("precisions", 0, "parity", 0, "masks", "windows", to=0), r"masks\.windows"),
        (_set("text", "embedding_sha256", to=""), r"\$\.text\.embedding_sha256"),
    ],
)
def test_what_is_off_is_refused_by_both_readers(manifest: Json, change: Callable[[Json], None], place: str) -> None:
    altered = copy.deepcopy(manifest)
    change(altered)
    with pytest.raises(ManifestInvalid, match=place):
        check_manifest(altered)
    with pytest.raises(ValidationError):
        Manifest.model_validate(altered)


@pytest.mark.parametrize("key", ["labels", "files", "text", "licence", "mask_interpolation"])
def test_a_missing_part_is_refused(manifest: Json, key: str) -> None:
    altered = {name: value for name, value in manifest.items() if name != key}
    with pytest.raises(ManifestInvalid, match=f"'{key}' is a required property"):
        check_manifest(altered)


def test_rounding_never_flatters() -> None:
    assert round_up(0.0) == 0.0
    assert round_up(6.51e-7) == 6.6e-7
    assert round_up(6.6e-7) in (6.6e-7, 6.7e-7)
    assert round_up(9.99e-5) == 1.0e-4
