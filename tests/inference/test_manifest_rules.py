"""The manifest as the service reads it: what is refused, and that the exporter's schema means the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from service.inference.manifest import LabelKind, Manifest, MinVolume
from tests.support.tiny_bundle import read_manifest

SCHEMA = Path(__file__).parents[2] / "model_export" / "bundle.schema.json"


def parse(manifest: dict[str, Any]) -> Manifest:
    return Manifest.model_validate_json(json.dumps(manifest), strict=True)


def test_a_valid_manifest_becomes_frozen_data(tiny_path: Path) -> None:
    manifest = parse(read_manifest(tiny_path))

    tumor = manifest.label("liver_tumor")
    assert tumor.kind is LabelKind.TUMOR
    assert tumor.companions("viscera") == {"liver"}
    assert tumor.companions("none") == frozenset()
    assert tumor.postprocessing.viscera[1] == MinVolume(ml=0.1)
    with pytest.raises(ValidationError, match="frozen"):
        tumor.threshold = 0.9
    with pytest.raises(KeyError):
        manifest.label("spleen")


def test_the_exporters_schema_accepts_it_too(tiny_path: Path) -> None:
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(read_manifest(tiny_path))


def addition(label: str) -> dict[str, Any]:
    return {
        "label": label,
        "base": {"name": "viscera-tiny", "version": "0.9.0", "sha256": "a" * 64},
        "heads": "kept",
        "trained": False,
        "checkpoint_sha256": "b" * 64,
        "text": {"name": "Bone", "source": "by hand", "embedding_sha256": "c" * 64, "weights_sha256": None},
    }


def test_an_appended_label_says_where_it_came_from(tiny_path: Path) -> None:
    manifest = read_manifest(tiny_path)
    assert parse(manifest).additions == ()  # bundles from before have no such key
    manifest["additions"] = [addition("bone")]
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(manifest)
    (bone,) = parse(manifest).additions
    assert (bone.label, bone.trained, bone.base.version) == ("bone", False, "0.9.0")


def _set(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        part: Any = manifest
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("surprise", to=1), "surprise"),
        (_set("labels", 3, "hosts", to=["spleen"]), "host spleen is not an organ"),
        (_set("labels", 3, "hosts", to=["liver_tumor"]), "host liver_tumor is not an organ"),
        (_set("labels", 3, "hosts", to=[]), "within_hosts needs a host"),
        (_set("labels", 0, "hosts", to=["bone"]), "an organ has no hosts"),
        (_set("labels", 1, "index", to=6), "same index"),
        (_set("labels", 1, "name", to="liver"), "same name"),
        (_set("labels", 1, "name", to="../liver"), "name"),
        (_set("labels", 1, "name", to="Liver"), "name"),
        (_set("labels", 1, "threshold", to=1.0), "threshold"),
        (_set("labels", 1, "threshold", to=0.0), "threshold"),
        (_set("labels", 1, "color", to=[0, 0, 256]), "color"),
        (_set("labels", 1, "postprocessing", "viscera", to=[{"rule": "magic"}]), "magic"),
        (_set("labels", 1, "postprocessing", to=[{"rule": "keep_largest"}]), "postprocessing"),
        (
            _set("labels", 1, "postprocessing", "reference", to=[{"rule": "cut_below", "organ": "spleen"}]),
            "looks at spleen",
        ),
        (
            _set("labels", 1, "postprocessing", "viscera", to=[{"rule": "cut_below", "organ": "bone"}]),
            "looks at bone",
        ),
        (
            _set(
                "labels", 1, "postprocessing", "viscera", to=[{"rule": "side_of_pair", "partner": "lung", "side": "up"}]
            ),
            "side",
        ),
        (_set("labels", to=[]), "labels"),
        (_set("preprocessing", "spacing_mm", to=[2.0, 2.0, 0.0]), "spacing_mm"),
        (_set("preprocessing", "spacing_mm", to=[2.0, 2.0, "2.0"]), "spacing_mm"),
        (_set("preprocessing", "intensity_range_hu", to=[100.0, 100.0]), "does not rise"),
        (_set("preprocessing", "orientation", to="LPS"), "orientation"),
        (_set("preprocessing", "interpolation", to="nearest"), "interpolation"),
        (_set("sliding_window", "roi_size", to=[32, 32, 40]), "roi_size"),
        (_set("sliding_window", "overlap", to=1.0), "overlap"),
        (_set("sliding_window", "continued_planes", to=-1), "continued_planes"),
        (_set("backbone", "feature_stride", to=3), "feature_stride"),
        (_set("text", "weights_sha256", to="0" * 63), "weights_sha256"),
        (_set("text", "names", to=[""]), "names"),
        (_set("additions", to=[addition("spleen")]), "label spleen is not among the labels"),
        (_set("additions", to=[addition("bone") | {"heads": "some"}]), "heads"),
        (_set("precisions", to=[]), "precisions"),
        (_set("precisions", 0, "file", to="other.onnx"), "other.onnx is not among the files"),
        (_set("precisions", 0, "file", to="../backbone.onnx"), "file"),
        (_set("files", "../secret", to={"sha256": "0" * 64, "bytes": 1}), "files"),
        (_set("files", "manifest.json", to={"sha256": "0" * 64, "bytes": 1}), "cannot state its own hash"),
    ],
)
def test_an_invariant_that_does_not_hold_is_refused(
    tiny_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    manifest = read_manifest(tiny_path)
    change(manifest)
    with pytest.raises(ValidationError, match=message):
        parse(manifest)


def test_more_labels_than_bits_are_refused(tiny_path: Path) -> None:
    manifest = read_manifest(tiny_path)
    bone = manifest["labels"][1]
    manifest["labels"] = [{**bone, "index": n, "name": f"bone_{n}"} for n in range(1, 66)]
    with pytest.raises(ValidationError, match="at most 64"):
        parse(manifest)


def test_another_overlap_is_checked_as_the_bundles_own_is(tiny_path: Path) -> None:
    windows = parse(read_manifest(tiny_path)).sliding_window
    assert windows.with_overlap(None) is windows
    assert windows.with_overlap(0.25).overlap == 0.25
    with pytest.raises(ValidationError):
        windows.with_overlap(0.95)
