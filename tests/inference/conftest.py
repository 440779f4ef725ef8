"""One hand-made bundle for all inference tests, opened once, and a phantom whose masks are known."""

from pathlib import Path

import pytest

from service.inference.bundle import Bundle, open_bundle
from service.inference.model import Model, load_bundle
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle on disk; tests that alter a bundle write their own."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_path: Path) -> Bundle:
    return open_bundle(tiny_path)


@pytest.fixture(scope="session")
def tiny_model(tiny_path: Path) -> Model:
    return load_bundle(tiny_path, engine="onnxruntime", threads=1)
