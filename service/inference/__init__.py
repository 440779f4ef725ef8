"""Inference with a bundle; `load_bundle(path).logits(windows)` is the model alone."""

from service.inference.model import Model as Model
from service.inference.model import load_bundle as load_bundle
