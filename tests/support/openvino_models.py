"""Graphs of OpenVINO, run for what they compute."""

import numpy as np
import openvino
from numpy.typing import NDArray


def run_in_float32(model: openvino.Model, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first output of a graph of one input, in float32 on one thread."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.array(openvino.Core().compile_model(model, "CPU", options)({0: values})[0])
