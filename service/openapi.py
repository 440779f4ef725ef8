"""Writes openapi.yaml from the application: `python -m service.openapi [FILE]`."""

import sys
from pathlib import Path

import yaml

from service.main import create_app
from service.settings import Settings


def openapi_yaml() -> str:
    """The OpenAPI document of the application as YAML; the same text every time."""
    document = create_app(Settings()).openapi()
    header = "# Written by `python -m service.openapi` from the application; do not edit.\n"
    body: str = yaml.dump(document, Dumper=_ReadableDumper, sort_keys=False, allow_unicode=True, width=110)
    return header + body


class _ReadableDumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and every repeated value in full."""

    def ignore_aliases(self, data: object) -> bool:
        """No anchors: they surprise readers and some tools."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ReadableDumper.add_representer(str, _represent_text)


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "openapi.yaml").write_text(openapi_yaml(), encoding="utf-8")
