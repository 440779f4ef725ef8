"""`viscera keys`: who may call the service of the settings. It works on the database; the service need not run."""

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime

import typer
from rich.markup import escape
from rich.table import Column, Table

from service.cli.console import ERR, OUT
from service.cli.local_key import keep_local_key
from service.jobs.keys import ApiKey, KeyStore, Scope
from service.settings import Settings
from service.telemetry import configure_logging

MAX_NAME_LENGTH = 200
TENANT_PATTERN = r"[A-Za-z0-9._:@-]{1,64}"


def create_key(name: str, *, tenant: str, scopes: Sequence[str], rate_limit: int | None, quota: int | None) -> int:
    """Make a key and print its text on stdout, alone, so that a script can take it; 0."""
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise typer.BadParameter(f"A name has 1 to {MAX_NAME_LENGTH} printable characters.")
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise typer.BadParameter("A tenant has 1 to 64 letters, digits and . _ : @ -")
    unknown = sorted(set(scopes) - set(Scope))
    if unknown or not scopes:
        raise typer.BadParameter(f"Scopes are {', '.join(Scope)}; not {', '.join(unknown) or 'none'}.")
    chosen = [Scope(scope) for scope in scopes]
    with _keys(Settings()) as keys:
        key, text = keys.create(name=name, tenant=tenant, scopes=chosen, rate_limit=rate_limit, quota=quota)
    ERR.print(f"Key {key.id} of tenant {tenant}. It is shown this once:", soft_wrap=True, markup=False)
    OUT.print(text, soft_wrap=True, markup=False)
    return 0


def list_keys() -> int:
    """Print the keys; 0."""
    table = Table(Column("Id", no_wrap=True), "Name", "Tenant", "Scopes", "Limits", "Last used", "Revoked")
    with _keys(Settings()) as keys:
        for key in keys.list():
            table.add_row(
                key.id,
                escape(key.name),
                escape(key.tenant),
                ", ".join(scope for scope in Scope if scope in key.scopes),
                _limits(key),
                _minute(key.last_used_at),
                _minute(key.revoked_at),
            )
    OUT.print(table)
    return 0


def revoke_key(key_id: str) -> int:
    """Refuse a key from now on; 0. Raises KeyNotFound."""
    with _keys(Settings()) as keys:
        keys.revoke(key_id)
    OUT.print(f"Key {key_id} is revoked.", soft_wrap=True, markup=False)
    return 0


def bootstrap() -> int:
    """Make, keep and print the first key, or say that there is one; 0."""
    settings = Settings()
    with _keys(settings) as keys:
        key = first_key(settings, keys)
    if key is None:
        ERR.print("There is a key already; `viscera keys create` makes another.")
    else:
        ERR.print(f"First API key, shown this once (kept in {settings.local_key_file}):", soft_wrap=True, markup=False)
        OUT.print(key, soft_wrap=True, markup=False)
    return 0


def first_key(settings: Settings, keys: KeyStore) -> str | None:
    """The first key, made and kept now; None when there is one, or none is needed."""
    if settings.auth == "none":
        return None
    key = keys.create_first()
    if key is not None:
        keep_local_key(settings, key)
    return key


@contextmanager
def _keys(settings: Settings) -> Iterator[KeyStore]:
    configure_logging(as_json=settings.log_json, level="warning")  # stdout is for the key alone
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with closing(KeyStore.open(settings.database_url)) as keys:
        yield keys


def _limits(key: ApiKey) -> str:
    rate = None if key.rate_limit is None else f"{key.rate_limit} requests/min"
    quota = None if key.quota is None else f"{key.quota} unfinished jobs"
    return ", ".join(filter(None, (rate, quota))) or "-"


def _minute(time: datetime | None) -> str:
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M}"
