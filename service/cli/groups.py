"""`viscera models` and `viscera keys`: what a user types; the work is in the modules of these names, and in `pull`."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.exits import exits
from service.cli.options import ApiKeyOption, ModelArgument, split_names

models_app = typer.Typer(help="The models that jobs can ask for.", no_args_is_help=True)


@models_app.command("list")
@exits
def models_list_command(
    url: Annotated[str | None, typer.Option(help="Ask this service instead of looking here.")] = None,
    api_key: ApiKeyOption = None,
) -> int:
    """List the models."""
    from service.cli.models import list_models

    return list_models(url, api_key)


@models_app.command("show")
@exits
def models_show_command(model: ModelArgument) -> int:
    """Show one model with its labels."""
    from service.cli.models import show_model

    return show_model(model)


@models_app.command("default")
@exits
def models_default_command(model: ModelArgument) -> int:
    """Make a model the one for requests that name none."""
    from service.cli.models import set_default

    return set_default(model)


@models_app.command("remove")
@exits
def models_remove_command(model: ModelArgument) -> int:
    """Delete an installed model."""
    from service.cli.models import remove_model

    return remove_model(model)


@models_app.command("pull")
@exits
def models_pull_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="universal-swin-unetr, universal-unet, ...")],
    version: Annotated[str, typer.Option(help="Semantic version that the bundle gets.")] = "1.0.0",
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence of the weights without being asked.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="The published file, fetched before; nothing is downloaded then.")
    ] = None,
) -> int:
    """Fetch published weights and install them as a model."""
    from service.cli.pull import pull

    return pull(name, version=version, accept_licence=accept_licence, weights=weights)


keys_app = typer.Typer(help="API keys of the service.", no_args_is_help=True)


@keys_app.command("create")
@exits
def keys_create_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for, such as the name of a system.")],
    tenant: Annotated[str, typer.Option(help="Whose jobs it submits and sees.")] = "default",
    scopes: Annotated[str, typer.Option(help="submit, read, admin, comma separated.")] = "submit,read",
    rate_limit: Annotated[int | None, typer.Option(help="Most requests per minute.", min=1)] = None,
    quota: Annotated[int | None, typer.Option(help="Most unfinished jobs at a time.", min=1)] = None,
) -> int:
    """Make a key and print it, this once."""
    from service.cli.keys import create_key

    return create_key(name, tenant=tenant, scopes=split_names(scopes) or (), rate_limit=rate_limit, quota=quota)


@keys_app.command("list")
@exits
def keys_list_command() -> int:
    """List the keys; their secrets are not known."""
    from service.cli.keys import list_keys

    return list_keys()


@keys_app.command("revoke")
@exits
def keys_revoke_command(key: Annotated[str, typer.Argument(metavar="ID", help="Id of a key, from the list.")]) -> int:
    """Refuse a key from now on."""
    from service.cli.keys import revoke_key

    return revoke_key(key)


@keys_app.command("bootstrap")
@exits
def keys_bootstrap_command() -> int:
    """Make and print the first key, where there has never been one; `viscera serve` does so itself."""
    from service.cli.keys import bootstrap

    return bootstrap()
