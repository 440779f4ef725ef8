"""Opening a bundle: a folder, or the same in one zip, with every byte checked before it is used.

The manifest is read first and its schema version is the first thing looked at. Then the schema, then the size and the
SHA-256 of each file it lists. Each file is read once: the bytes that were hashed are the bytes that are used. A file
that the manifest does not list is ignored and never opened; a listed name is flat, so it cannot lead out of the bundle.
"""

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import ValidationError

from service.errors import (
    BundleInvalid,
    BundleNotFound,
    BundleTampered,
    PrecisionNotOffered,
    UnknownSchemaVersion,
)
from service.inference.head import PARAMETERS_PER_LABEL
from service.inference.manifest import HEAD_FILE, MANIFEST_FILE, SAMPLE_FILE, SCHEMA_VERSION, Label, Manifest, Precision
from service.targets import select

BUNDLES_DIR = Path(__file__).parent.parent / "bundles"
DEFAULT_BUNDLE = "viscera-compact"
_MANIFEST_MAX_BYTES = 4 * 1024 * 1024

Float32 = NDArray[np.float32]
_Reader = Callable[[str, int], bytes]
"""(file name, limit) -> at most limit + 1 bytes of it; KeyError when it is missing or cannot be read."""


@dataclass(frozen=True, eq=False)
class Head:
    """The text-driven head: parameters of label c = w_image @ pooled + k[c]. Both float32."""

    w_image: Float32  # (153, 256)
    k: Float32  # (C, 153)


@dataclass(frozen=True, eq=False)
class Sample:
    """One window and the logits that the exporter saw for it, for the self-test. Both float32 (stored as float16)."""

    window: Float32  # (1, 1, D, H, W), normalised
    logits: Float32  # (1, C, D/s, H/s, W/s)


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model whose manifest is valid and whose every file has the stated SHA-256.

    `sha256` is the digest of manifest.json, and so stands for the whole bundle; `files` holds the verified bytes.
    """

    manifest: Manifest
    sha256: str
    files: Mapping[str, bytes]
    head: Head
    sample: Sample

    def precision(self, name: str) -> Precision:
        """The precision of that name; PrecisionNotOffered when the bundle has none."""
        for candidate in self.manifest.precisions:
            if candidate.name == name:
                return candidate
        raise PrecisionNotOffered(f"{self.manifest.name} has no precision {name[:40]!r}; it has {self.offer}.")

    def backbone(self, precision: Precision) -> bytes:
        """The ONNX file of one of its precisions."""
        return self.files[precision.file]

    def without_files(self) -> "Bundle":
        """The same without the bytes of its files: an open engine has its own copy of the weights."""
        return replace(self, files={})

    @property
    def offer(self) -> str:
        """Each precision with its engines, for people."""
        return ", ".join(
            f"{precision.name} ({' and '.join(precision.engines)})" for precision in self.manifest.precisions
        )

    def labels_for(self, targets: Iterable[str] | None) -> tuple[Label, ...]:
        """The labels that the targets mean (`service.targets`), in the bundle's order. UnknownLabel for a stranger."""
        names = select(targets, self.manifest.labels, self.manifest.name)
        return tuple(label for label in self.manifest.labels if label.name in names)


def open_bundle(path: Path) -> Bundle:
    """The bundle at `path`, a folder or a zip (its files at the top or in one folder).

    Raises:
        BundleNotFound: nothing there, or no manifest in it.
        UnknownSchemaVersion: written for another version of the service; checked before anything else.
        BundleInvalid: the manifest or a file does not follow the schema; says where.
        BundleTampered: a file is missing, or its size or SHA-256 differs from the manifest's; names the file.
    """
    if path.is_dir():
        return _load(_folder_reader(path), path.name)
    if not path.is_file():
        raise BundleNotFound(f"There is no bundle {path.name}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(_zip_reader(archive, path.name), path.name)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BundleInvalid(f"{path.name} is neither a folder nor a readable zip.") from error


def find_bundles(extra_dirs: Iterable[Path] = ()) -> tuple[Path, ...]:
    """Paths of all bundles in `extra_dirs`, then of those that came with the service. None is opened."""
    found: list[Path] = []
    for folder in (*extra_dirs, BUNDLES_DIR):
        if folder.is_dir():
            found += [path for path in sorted(folder.iterdir()) if _looks_like_bundle(path)]
    return tuple(found)


def default_bundle_path() -> Path:
    """The newest of the default bundles that came with the service; BundleNotFound when the installation lacks it."""
    packaged = [path for path in find_bundles() if path.name.startswith(f"{DEFAULT_BUNDLE}-")]
    if not packaged:
        raise BundleNotFound(
            f"The default bundle {DEFAULT_BUNDLE} is not in this installation; install the package with its data, "
            "or name a bundle."
        )
    return max(packaged, key=_version_of)


def _looks_like_bundle(path: Path) -> bool:
    return (path / MANIFEST_FILE).is_file() or (path.suffix == ".zip" and path.is_file())


def _version_of(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", path.name.removeprefix(DEFAULT_BUNDLE)))


def _folder_reader(folder: Path) -> _Reader:
    def read(name: str, limit: int) -> bytes:
        try:
            with (folder / name).open("rb") as file:
                # Not simply limit + 1: read() sets aside what it is asked for, and the manifest may ask for anything.
                return file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
        except OSError:
            raise KeyError(name) from None

    return read


def _zip_reader(archive: zipfile.ZipFile, bundle: str) -> _Reader:
    manifests = [name for name in archive.namelist() if name.split("/")[-1] == MANIFEST_FILE and name.count("/") < 2]
    if len(manifests) != 1:
        raise BundleNotFound(f"{bundle} holds {len(manifests)} files called {MANIFEST_FILE}; a bundle holds one.")
    prefix = manifests[0].removesuffix(MANIFEST_FILE)

    def read(name: str, limit: int) -> bytes:
        with archive.open(prefix + name) as file:
            return file.read(limit + 1)

    return read


def _read_manifest(read: _Reader, bundle: str) -> tuple[Manifest, bytes]:
    try:
        raw = read(MANIFEST_FILE, _MANIFEST_MAX_BYTES)
    except KeyError:
        raise BundleNotFound(f"{bundle} has no {MANIFEST_FILE}.") from None
    if len(raw) > _MANIFEST_MAX_BYTES:
        raise BundleInvalid(f"{MANIFEST_FILE} is larger than {_MANIFEST_MAX_BYTES} bytes.")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleInvalid(f"{MANIFEST_FILE} is not a JSON object.")
    version = content.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise UnknownSchemaVersion(
            f"{bundle} has schema version {str(version)[:40]!r}; this service reads version {SCHEMA_VERSION}. "
            "Export the model again with the matching viscera-export."
        )
    try:
        return Manifest.model_validate_json(raw, strict=True), raw
    except ValidationError as error:
        raise BundleInvalid(f"{MANIFEST_FILE}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    more = error.error_count() - 1
    return (f"{place}: " if place else "") + problem["msg"] + (f" ({more} more)" if more else "")


def _load(read: _Reader, bundle: str) -> Bundle:
    manifest, raw = _read_manifest(read, bundle)
    files: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        try:
            content = read(name, entry.bytes)
        except KeyError:
            raise BundleTampered(f"{bundle}: {name} is missing or cannot be read.") from None
        except (zipfile.BadZipFile, zlib.error) as error:
            raise BundleTampered(f"{bundle}: {name} is damaged: {error}") from error
        if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleTampered(
                f"{bundle}: {name} is not the file that the manifest describes; fetch the bundle again."
            )
        files[name] = content
    head = _parse_head(files[HEAD_FILE], manifest)
    sample = _parse_sample(files[SAMPLE_FILE], manifest)
    return Bundle(manifest, hashlib.sha256(raw).hexdigest(), files, head, sample)


def _parse_head(content: bytes, manifest: Manifest) -> Head:
    try:
        tensors = safetensors.numpy.load(content)
    except Exception as error:  # safetensors raises its own type and several of Python's
        raise BundleInvalid(f"{HEAD_FILE} is not a safetensors file: {error}") from error
    pooled = manifest.backbone.pooled_channels
    expected = {"W_image": (PARAMETERS_PER_LABEL, pooled), "K": (len(manifest.labels), PARAMETERS_PER_LABEL)}
    for name, shape in expected.items():
        _check_array(HEAD_FILE, name, tensors.get(name), shape, np.float32)
    return Head(w_image=tensors["W_image"], k=tensors["K"])


def _parse_sample(content: bytes, manifest: Manifest) -> Sample:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            window, logits = archive["window"], archive["logits"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleInvalid(f"{SAMPLE_FILE} does not hold a window and its logits: {error}") from error
    edges = window.shape[2:]
    if window.ndim != 5 or any(edge < 16 or edge % 16 for edge in edges):
        raise BundleInvalid(f"{SAMPLE_FILE}: window has the shape {window.shape}; edges are multiples of 16 voxels.")
    _check_array(SAMPLE_FILE, "window", window, (1, 1, *edges), np.float16)
    on_features = tuple(edge // manifest.backbone.feature_stride for edge in edges)
    _check_array(SAMPLE_FILE, "logits", logits, (1, len(manifest.labels), *on_features), np.float16)
    return Sample(window.astype(np.float32), logits.astype(np.float32))


def _check_array(
    file: str, name: str, array: NDArray[np.generic] | None, shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    if array is None:
        raise BundleInvalid(f"{file} has no array {name}.")
    if array.shape != shape or array.dtype != dtype:
        raise BundleInvalid(f"{file}: {name} is {array.dtype} {array.shape}; {np.dtype(dtype)} {shape} belongs there.")
    if not np.isfinite(array.astype(np.float32)).all():
        raise BundleInvalid(f"{file}: {name} holds values that are not finite.")
