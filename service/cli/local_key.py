"""The first API key, kept in the data folder for the commands of the same user on the same machine."""

import os
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from service.settings import Settings

_OWNER_ONLY = 0o600


def keep_local_key(settings: Settings, key: str) -> None:
    """Write the key where only this user can read it."""
    part = settings.local_key_file.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "w") as file:
        file.write(f"{key}\n")
    part.replace(settings.local_key_file)


def read_local_key(data_dir: Path) -> str | None:
    """The key that a service with this data folder has kept; None when it has kept none that this user may read."""
    try:
        return Settings(data_dir=data_dir).local_key_file.read_text().strip() or None
    except OSError:
        return None


def key_for(url: str, given: str | None) -> str | None:
    """The key to send to `url`: the one that was given, or the kept one, which never leaves this machine."""
    if given or not _is_this_machine(url):
        return given
    return read_local_key(Settings().data_dir)


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
