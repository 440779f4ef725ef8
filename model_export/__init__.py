import os
import sys

# onnxruntime and OpenVINO report to their makers over the network when they are imported. Nothing of ours does that: so
# this stands before any import of them. OpenVINO has a stub for when its reporter is not installed.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to say: not installed
