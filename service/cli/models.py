"""`viscera models`: what jobs can ask for, here or at a service."""

from rich.table import Table

from service.api.schemas import ModelView
from service.catalog import Catalog
from service.cli.console import OUT
from service.client import Viscera
from service.settings import Settings


def print_models(url: str | None) -> int:
    """Print the models of the service at `url`, or those of the settings; 0."""
    table = Table("Model", "Labels", "Licence", "Intended use")
    for model in _here() if url is None else _there(url):
        lesions = sum(label.kind != "organ" for label in model.labels)
        name = f"{model.id} (default)" if model.default else model.id
        table.add_row(name, f"{len(model.labels) - lesions} + {lesions}", model.licence, model.intended_use)
    OUT.print(table)
    OUT.print("Labels: organs + lesions.", style="dim")
    return 0


def _here() -> list[ModelView]:
    catalog = Catalog.from_settings(Settings())
    return [ModelView.of(entry, catalog.default_id()) for entry in catalog.entries()]


def _there(url: str) -> list[ModelView]:
    with Viscera(url) as viscera:
        return [ModelView.model_validate(model) for model in viscera.models()]
