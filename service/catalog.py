"""Which models this service can run: the manifests of the bundle folders, read as JSON and nothing more.

The API answers `GET /v1/models` and checks a job's labels with this; opening a bundle for inference, with its hashes
and its self-test, is the worker's work (`service.inference`). A model's *id* is `<name>-<version>`, as its folder is
called; its *name* alone means the newest version.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ModelNotFound
from service.settings import Settings
from service.targets import select

PACKAGED_BUNDLES = Path(__file__).parent / "bundles"
PACKAGED_DEFAULT = "viscera-compact"
MANIFEST_SCHEMA_VERSION = 1
_DEFAULT_FILE = "default"  # in the data folder's models: the id or name of the default model

log = structlog.get_logger(__name__)


class _Tolerant(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelCode(_Tolerant):
    """A coded concept; scheme `SCT` is SNOMED CT."""

    scheme: str = Field(description="Coding scheme designator, as in DICOM.", examples=["SCT"])
    value: str = Field(description="The code.", examples=["64033007"])
    meaning: str = Field(description="What it stands for.", examples=["Kidney"])


class ModelLabel(_Tolerant):
    """One label of a model: an organ, or a lesion with the organs it can lie in."""

    index: int = Field(description="Value of the label in the label map, from 1.")
    name: str = Field(description="Stable name, used in requests and results.", examples=["liver_tumor"])
    display_name: str = Field(description="Name for people.", examples=["Liver tumor"])
    kind: str = Field(description="`organ`, `tumor` or `cyst`.", examples=["tumor"])
    hosts: tuple[str, ...] = Field(default=(), description="Names of the organs a lesion of this label lies in.")
    color: tuple[int, int, int] = Field(description="Display colour, sRGB 0..255.", examples=[[192, 64, 64]])
    type: ModelCode = Field(description="The organ, or what a lesion is; its code can be a job's target.")
    laterality: ModelCode | None = Field(default=None, description="Side of a paired organ.")


class ModelPrecision(_Tolerant):
    """One form of a model's backbone."""

    name: str


class ModelPreprocessing(_Tolerant):
    """The grid that the model works on."""

    spacing_mm: tuple[float, float, float] = Field(description="Voxel spacing of the model grid in mm (R, A, S).")


class Manifest(_Tolerant):
    """The part of a bundle's `manifest.json` that callers of the API are told."""

    name: str
    version: str
    description: str
    intended_use: str
    licence: str
    labels: tuple[ModelLabel, ...]
    preprocessing: ModelPreprocessing
    precisions: tuple[ModelPrecision, ...]


@dataclass(frozen=True)
class CatalogEntry:
    """One bundle on disk, a folder or a zip, and what its manifest says."""

    path: Path
    manifest: Manifest
    sha256: str  #: of the bytes of manifest.json, the bundle's identity in a result's provenance

    @property
    def id(self) -> str:
        """`<name>-<version>`."""
        return f"{self.manifest.name}-{self.manifest.version}"

    def require_targets(self, targets: Sequence[str] | None) -> None:
        """Raise UnknownLabel for a target that means no label of the model (`service.targets`)."""
        select(targets, self.manifest.labels, self.id)


class Catalog:
    """The bundles directly under some folders; read anew at each call, so that a copied bundle appears at once."""

    def __init__(self, folders: Iterable[Path], default: str | None = None) -> None:
        self._folders = tuple(folders)
        self._default = default

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The operator's folders first, then what was pulled, then the bundles shipped with the package."""
        folders = (*settings.bundles_dir, settings.models_dir, PACKAGED_BUNDLES)
        return cls(folders, settings.default_model or chosen_default(settings.models_dir))

    def entries(self) -> tuple[CatalogEntry, ...]:
        """Every readable bundle, by name and then newest first; an unreadable one is logged and left out."""
        found: dict[str, CatalogEntry] = {}
        for folder in self._folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                entry = _read_entry(path)
                if entry is not None:
                    found.setdefault(entry.id, entry)
        newest_first = sorted(found.values(), key=lambda e: _version_key(e.manifest.version), reverse=True)
        return tuple(sorted(newest_first, key=lambda entry: entry.manifest.name))

    def find(self, model: str | None = None) -> CatalogEntry:
        """The bundle of that id, or the newest of that name; without a name, the default.

        Raises:
            ModelNotFound: there is none; the message lists what there is.
        """
        entries = self.entries()
        wanted = model or self._default
        for entry in entries:
            if wanted in (None, entry.id, entry.manifest.name):
                return entry
        available = ", ".join(entry.id for entry in entries) or "none at all"
        raise ModelNotFound(f"There is no model {(wanted or '')[:80]!r} here; available: {available}.")

    def default_id(self) -> str | None:
        """Id of the model that a request without `model` gets; None where there is no bundle."""
        try:
            return self.find().id
        except ModelNotFound:
            return None


def chosen_default(models_dir: Path) -> str:
    """The model that `viscera models default` chose, or the one shipped with the package."""
    try:
        return (models_dir / _DEFAULT_FILE).read_text(encoding="utf-8").strip() or PACKAGED_DEFAULT
    except (OSError, UnicodeDecodeError):
        return PACKAGED_DEFAULT


def choose_default(models_dir: Path, model: str) -> None:
    """Make a model the default of this data folder; a service takes it up when it starts."""
    models_dir.mkdir(parents=True, exist_ok=True)
    part = models_dir / f".{_DEFAULT_FILE}.part"
    part.write_text(f"{model}\n", encoding="utf-8")
    part.replace(models_dir / _DEFAULT_FILE)


def _read_entry(path: Path) -> CatalogEntry | None:
    try:
        raw = _manifest_bytes(path)
        if raw is None:
            return None
        document = json.loads(raw)
        if document.get("schema_version") != MANIFEST_SCHEMA_VERSION:
            log.warning("bundle.skipped", bundle=path.name, reason="unknown schema version")
            return None
        return CatalogEntry(path, Manifest.model_validate(document), hashlib.sha256(raw).hexdigest())
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile, ValidationError) as error:
        log.warning("bundle.skipped", bundle=path.name, reason=type(error).__name__)
        return None


def _manifest_bytes(path: Path) -> bytes | None:
    """Content of the bundle's manifest.json, at the top of the folder or zip or one folder down; None: not a bundle."""
    if path.is_dir():
        manifest = path / "manifest.json"
        return manifest.read_bytes() if manifest.is_file() else None
    if path.suffix == ".zip" and path.is_file():
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if re.fullmatch(r"(?:[^/]+/)?manifest\.json", name):
                    return archive.read(name)
    return None


def _version_key(version: str) -> tuple[tuple[int, int | str], ...]:
    """Orders 1.10.0 after 1.9.0, and words before numbers (1.0.0-rc before 1.0.0.1)."""
    parts = re.split(r"[.\-+]", version)
    return tuple((1, int(part)) if part.isdigit() else (0, part) for part in parts)
