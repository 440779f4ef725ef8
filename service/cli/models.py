"""`viscera models`: what jobs can ask for, here or at a service, and which models are installed here."""

import shutil

from rich.table import Table

from service.api.schemas import ModelView
from service.catalog import PACKAGED_BUNDLES, Catalog, CatalogEntry, choose_default
from service.cli.console import OUT
from service.cli.local_key import key_for
from service.client import Viscera
from service.errors import ModelInUse
from service.settings import Settings


def list_models(url: str | None, api_key: str | None) -> int:
    """Print the models of the service at `url`, or those of the settings; 0."""
    table = Table("Model", "Labels", "Licence", "Intended use")
    for model in _here() if url is None else _there(url, key_for(url, api_key)):
        lesions = sum(label.kind != "organ" for label in model.labels)
        name = f"{model.id} (default)" if model.default else model.id
        table.add_row(name, f"{len(model.labels) - lesions} + {lesions}", model.licence, model.intended_use)
    OUT.print(table)
    OUT.print("Labels: organs + lesions.", style="dim")
    return 0


def show_model(name: str) -> int:
    """Print one model with its labels and their codes; 0. Raises ModelNotFound."""
    catalog = Catalog.from_settings(Settings())
    entry = catalog.find(name)
    model = ModelView.of(entry, catalog.default_id())
    facts = Table(box=None, show_header=False)
    facts.add_row("model", f"{model.id} (default)" if model.default else model.id)
    facts.add_row("description", model.description)
    facts.add_row("intended use", model.intended_use)
    facts.add_row("licence", model.licence)
    facts.add_row("grid", f"{' x '.join(f'{edge:g}' for edge in model.spacing_mm)} mm")
    facts.add_row("precisions", ", ".join(model.precisions))
    facts.add_row("sha256", model.sha256)
    facts.add_row("path", str(entry.path))
    OUT.print(facts)
    labels = Table("Index", "Label", "Kind", "In", "SNOMED CT")
    for label in model.labels:
        labels.add_row(str(label.index), label.name, label.kind, ", ".join(label.hosts), label.type.value)
    OUT.print(labels)
    return 0


def remove_model(name: str) -> int:
    """Delete an installed model; 0.

    Raises:
        ModelNotFound: there is none of that id or name.
        ModelInUse: it is the default, or came with the package.
    """
    settings = Settings()
    catalog = Catalog.from_settings(settings)
    entry = catalog.find(name)
    if entry.path.parent == PACKAGED_BUNDLES:
        raise ModelInUse(f"{entry.id} came with the package.")
    if entry.id == catalog.default_id():
        raise ModelInUse(f"{entry.id} is the default; choose another one first with `viscera models default`.")
    _delete(entry)
    OUT.print(f"Removed {entry.id}.", soft_wrap=True)
    return 0


def set_default(name: str) -> int:
    """Make a model the default for requests that name none; 0. Raises ModelNotFound."""
    settings = Settings()
    entry = Catalog.from_settings(settings).find(name)
    choose_default(settings.models_dir, name)
    OUT.print(f"{entry.id} is the default; a running service takes it up when it is started again.", soft_wrap=True)
    if settings.default_model is not None:
        OUT.print(f"VISCERA_DEFAULT_MODEL is set to {settings.default_model} and goes before it.", soft_wrap=True)
    return 0


def _delete(entry: CatalogEntry) -> None:
    """First out of sight under another name, so that no service opens half a bundle."""
    doomed = entry.path.with_name(f".removed-{entry.path.name}")
    entry.path.rename(doomed)
    if doomed.is_dir():
        shutil.rmtree(doomed)
    else:
        doomed.unlink()


def _here() -> list[ModelView]:
    catalog = Catalog.from_settings(Settings())
    return [ModelView.of(entry, catalog.default_id()) for entry in catalog.entries()]


def _there(url: str, api_key: str | None) -> list[ModelView]:
    with Viscera(url, api_key=api_key) as viscera:
        return [ModelView.model_validate(model) for model in viscera.models()]
