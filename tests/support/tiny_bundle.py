"""A bundle made by hand, whose answers can be read off the HU of the input.

The "network" averages 2 x 2 x 2 voxels; the head's rows are hinge functions of that average, so that

    liver        0 HU < v < 250 HU        organ, largest component
    bone         v > 300 HU               organ
    lung      -900 HU < v < -500 HU       organ, the two largest components
    liver_tumor 120 HU < v < 250 HU       tumour, inside the liver, at least 0.1 ml

are predicted exactly, up to partial volume at surfaces. The model grid is 2 mm, a window is 32 voxels, the stride 2.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

TINY_LABELS = ("liver", "bone", "lung", "liver_tumor")
STEEPNESS = 100.0  # logit per 1000 HU


def write_tiny_bundle(folder: Path) -> Path:
    """Write the bundle to `folder/viscera-tiny-1.0.0` and return that path."""
    bundle = folder / "viscera-tiny-1.0.0"
    bundle.mkdir(parents=True)
    onnx.save(_backbone(), bundle / "backbone.onnx")
    save_file({"W_image": np.zeros((153, 256), np.float32), "K": head_rows()}, bundle / "head.safetensors")
    window = np.random.default_rng(7).uniform(-1, 1, (1, 1, 48, 48, 48)).astype(np.float16)
    np.savez(bundle / "sample.npz", window=window, logits=expected_logits(window.astype(np.float32)).astype(np.float16))
    (bundle / "MODEL_CARD.md").write_text("# viscera-tiny\n\nMade by hand, for tests.\n")
    (bundle / "LICENSE").write_text("Apache License 2.0\n")
    (bundle / "bundle.schema.json").write_text('{"$schema": "https://json-schema.org/draft/2020-12/schema"}\n')
    write_manifest(bundle, tiny_manifest())
    return bundle


def write_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the true hashes of the files that lie in the bundle."""
    files = sorted(path for path in bundle.iterdir() if path.name != "manifest.json")
    manifest["files"] = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in files
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(bundle: Path) -> dict[str, Any]:
    """manifest.json as plain JSON, to be altered and written back."""
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return manifest


def expected_logits(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (B, 4, D/2, H/2, W/2) of windows (B, 1, D, H, W) in thousands of HU, from the table above alone."""
    batch, _, depth, height, width = window.shape
    blocks = window.reshape(batch, depth // 2, 2, height // 2, 2, width // 2, 2)
    v = blocks.mean(axis=(2, 4, 6))

    def between(low: float, high: float) -> NDArray[np.float32]:
        return STEEPNESS * np.minimum(v - low, high - v)

    return np.stack([between(0, 0.25), STEEPNESS * (v - 0.3), between(-0.9, -0.5), between(0.12, 0.25)], axis=1)


def head_rows() -> NDArray[np.float32]:
    """K (4, 153), in the order w1 64, w2 64, w3 8, b1 8, b2 8, b3 1."""
    return np.stack([_between(0, 0.25), _above(0.3), _between(-0.9, -0.5), _between(0.12, 0.25)])


def _row(knots: list[float], slopes: list[float], constant: float) -> NDArray[np.float32]:
    """A label whose logit is constant + sum_n slopes[n] * relu(v - knots[n])."""
    w1, w2, w3 = np.zeros((8, 8)), np.eye(8), np.zeros(8)
    b1, b2, b3 = np.zeros(8), np.zeros(8), np.array([constant])
    for n, (knot, slope) in enumerate(zip(knots, slopes, strict=True)):
        w1[n, 0], b1[n], w3[n] = 1.0, -knot, slope
    return np.concatenate([w1.ravel(), w2.ravel(), w3, b1, b2, b3]).astype(np.float32)


def _above(low: float) -> NDArray[np.float32]:
    # v is at least -1, so relu(v + 1) is v + 1.
    return _row([-1.0], [STEEPNESS], -STEEPNESS * (1.0 + low))


def _between(low: float, high: float) -> NDArray[np.float32]:
    """A tent over low..high: it rises from v = -1 on, and turns at the middle."""
    return _row([-1.0, (low + high) / 2], [STEEPNESS, -2.0 * STEEPNESS], -STEEPNESS * (1.0 + low))


def _backbone() -> onnx.ModelProto:
    weight = np.zeros((8, 1, 2, 2, 2), np.float32)
    weight[0], weight[1] = 1 / 8, -1 / 8
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["window", "weight"], ["features"], kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
            helper.make_node("ReduceMean", ["window", "axes"], ["mean"], keepdims=0),
            helper.make_node("Tile", ["mean", "repeats"], ["pooled"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 1, "d", "h", "w"])],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 8, "d2", "h2", "w2"]),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 256]),
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array([2, 3, 4], np.int64), "axes"),
            numpy_helper.from_array(np.array([1, 256], np.int64), "repeats"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def tiny_manifest() -> dict[str, Any]:
    """The manifest as plain JSON, without the file hashes."""
    organ = {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"}
    altered = {"scheme": "SCT", "value": "49755003", "meaning": "Morphologically Altered Structure"}
    liver = {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}
    bone = {"scheme": "SCT", "value": "272673000", "meaning": "Bone"}
    lung = {"scheme": "SCT", "value": "39607008", "meaning": "Lung"}
    neoplasm = {"scheme": "SCT", "value": "108369006", "meaning": "Neoplasm"}

    def label(
        index: int,
        name: str,
        display_name: str,
        color: list[int],
        code: dict[str, str],
        rules: Sequence[Any] = ({"rule": "keep_largest", "count": 1},),
        **more: Any,
    ) -> Any:
        plain = {
            "kind": "organ",
            "hosts": [],
            "category": organ,
            "laterality": None,
            "anatomic_region": None,
            "threshold": 0.5,
            "postprocessing": {"viscera": list(rules), "reference": []},
        }
        own = {"index": index, "name": name, "display_name": display_name, "color": color, "type": code}
        return {**plain, **own, **more}

    tumor_rules = [
        {"rule": "within_hosts", "closing_mm": 4.0, "dilation_mm": 2.0},
        {"rule": "min_volume", "ml": 0.1},
        {"rule": "max_components", "count": 20},
    ]
    return {
        "schema_version": 1,
        "name": "viscera-tiny",
        "version": "1.0.0",
        "created": "2025-01-01T00:00:00Z",
        "description": "Reads labels off the HU.",
        "intended_use": "Tests.",
        "licence": "Apache-2.0",
        "files": {},
        "labels": [
            label(6, "liver", "Liver", [221, 130, 101], liver),
            label(40, "bone", "Bone", [241, 214, 145], bone, rules=[]),
            label(16, "lung", "Lung", [150, 200, 235], lung, rules=[{"rule": "keep_largest", "count": 2}]),
            label(
                27,
                "liver_tumor",
                "Liver tumour",
                [255, 80, 60],
                neoplasm,
                kind="tumor",
                hosts=["liver"],
                category=altered,
                anatomic_region=liver,
                rules=tumor_rules,
            ),
        ],
        "preprocessing": {
            "orientation": "RAS",
            "spacing_mm": [2.0, 2.0, 2.0],
            "intensity_range_hu": [-1000.0, 1000.0],
            "output_range": [-1.0, 1.0],
            "interpolation": "linear",
            "foreground_crop": {"above_hu": -300.0},
        },
        "sliding_window": {"roi_size": [32, 32, 32], "overlap": 0.5, "importance": "gaussian", "sigma_scale": 0.125},
        "mask_interpolation": "linear",
        "backbone": {
            "architecture": "mean",
            "feature_channels": 8,
            "pooled_channels": 256,
            "feature_stride": 2,
            "parameters": 64,
        },
        "precisions": [
            {
                "name": "fp32",
                "file": "backbone.onnx",
                "parity": [
                    {"engine": engine, "max_relative_error": 1e-7, "tolerance": 1e-4}
                    for engine in ("onnxruntime", "openvino")
                ],
            }
        ],
        "text": {
            "encoder": "none",
            "prompt_template": "A computerized tomography of a {}.",
            "source": "none",
            "embedding_sha256": "0" * 64,
        },
        "training": {"recipe": "by hand", "checkpoint_sha256": "0" * 64},
    }
