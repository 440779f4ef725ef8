"""The documents say what the code does: names, tables, examples and links, compared with the code itself."""

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

import model_export.cli
import service.cli
import training.cli
from service.api.problems import Problem, problem_kinds
from service.api.schemas import ArtifactList, JobView
from service.client import Viscera
from service.errors import BundleError, InputError, ServiceError
from service.inference.manifest import Label, Manifest, Rule
from service.progress import Stage
from service.reporting.schema import Findings
from service.settings import PREFIX, Settings
from tests.support.documents import DOCS, README, ROOT, fenced, section, text_of
from training.prompts import TEMPLATES
from training.text_encoder import ENCODERS

CONFIGURATION = DOCS / "configuration.md"
ERRORS = DOCS / "errors.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
COMMANDS: dict[str, Any] = {  # click groups
    "viscera": typer.main.get_command(service.cli.app),
    "viscera-train": typer.main.get_command(training.cli.app),
    "viscera-export": typer.main.get_command(model_export.cli.app),
}
# Classes that only group others and are never raised themselves.
GROUPS = {InputError.code, BundleError.code, ServiceError.code}

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def code_lines(document: str) -> Iterator[str]:
    """Lines of code: indented or fenced, without comments, and code inside a line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^```\w*\n.*?^```$", "", document, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^ {4}(.*)$", plain, re.MULTILINE)
    blocks += re.findall(r"`([^`\n]+)`", re.sub(r"^ {4}.*$", "", plain, flags=re.MULTILINE))
    for block in blocks:
        yield from (re.sub(r"(^|\s)#.*", "", line) for line in block.splitlines())


def first_cells(table: str) -> list[str]:
    """The code names in the first column of Markdown tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def anchors(document: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def field_names(model: type[BaseModel]) -> set[str]:
    """Names of all fields of a model and of the models in it."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(name)
        for part in models_in(field.annotation):
            names |= field_names(part)
    return names


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def keys_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys_in(part) for part in value.values()))
    return set().union(*(keys_in(part) for part in value)) if isinstance(value, list) else set()


# Settings


def test_every_setting_has_a_row_and_nothing_else() -> None:
    documented = first_cells(text_of(CONFIGURATION))
    assert documented == [PREFIX + name.upper() for name in Settings.model_fields]


@by_name
def test_every_variable_that_is_named_is_read(document: Path) -> None:
    options = (
        option for group in COMMANDS.values() for command in group.commands.values() for option in command.params
    )
    read = {PREFIX + name.upper() for name in Settings.model_fields} | {str(option.envvar) for option in options}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", text_of(document))) - read == set()


# Bare numbers and words only: `2 GiB`, `all cores` and the like are for people.
def test_documented_defaults_are_those_of_the_settings() -> None:
    rows = re.findall(r"^\| `VISCERA_(\w+)` \| `?([\w.:/\[\]-]+)`? \|", text_of(CONFIGURATION), re.MULTILINE)
    defaults = {name.upper(): Settings.model_fields[name].get_default(call_default_factory=False) for name in
                ("broker_url", "engine", "precision", "max_upload_files", "max_expansion_ratio", "lease_seconds",
                 "max_attempts", "sweep_seconds", "redispatch_seconds", "job_time_limit_seconds", "orphan_seconds",
                 "shutdown_grace_seconds", "segmenter", "host", "port", "log_json", "log_level")}  # fmt: skip
    shown = dict(rows)
    assert {name: shown.get(name) for name in defaults} == {
        name: f"{value:g}"
        if isinstance(value, float)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
        for name, value in defaults.items()
    }


# Commands


@by_name
def test_every_make_target_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = {found for line in code_lines(text_of(document)) for found in re.findall(r"^make ([a-z-]+)", line.strip())}
    assert named - targets == set()


def test_make_help_lists_every_target() -> None:
    makefile = text_of(ROOT / "Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


@by_name
def test_every_command_and_option_exists(document: Path) -> None:
    for line in code_lines(text_of(document)):
        # Behind variable assignments, up to a semicolon.
        call = re.fullmatch(r"(?:[A-Z_]+=\S+ )*(viscera(?:-train|-export)?) ([a-z-]+)([^;]*)", line.strip())
        if call is None:
            continue
        group = COMMANDS[call[1]]
        words = shlex.split(call[3])
        assert call[2] in group.commands, line
        command = group.commands[call[2]]
        if words and hasattr(command, "commands"):  # a group of its own, such as `viscera models`
            assert words[0] in command.commands, line
            command = command.commands[words[0]]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} - options == set(), line


def test_readme_names_every_command_of_viscera() -> None:
    table = section(text_of(README), "Use it from a shell")
    assert {name.split()[1] for name in first_cells(table)} == set(COMMANDS["viscera"].commands)


def test_python_of_the_readme_uses_methods_that_exist() -> None:
    calls = [
        node
        for block in fenced(text_of(README), "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "viscera"
    ]
    assert calls
    assert [call.attr for call in calls if not hasattr(Viscera, call.attr)] == []


# API


def test_every_problem_has_a_row_with_its_status() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", text_of(ERRORS), re.MULTILINE)
    expected = {kind.code: kind.status for kind in problem_kinds().values() if kind.code not in GROUPS}
    assert {code: int(status) for code, status in rows} == expected
    assert len(rows) == len(expected)


def test_api_document_shows_every_route_and_no_other() -> None:
    routes = yaml.safe_load(text_of(ROOT / "openapi.yaml"))["paths"]
    patterns = {re.sub(r"\{name\}", "[^?]+", re.sub(r"\{job_id\}", r"\\$JOB", route)): route for route in routes}
    called = {
        path for line in code_lines(text_of(DOCS / "api.md")) for path in re.findall(r'\$VISCERA(/[^\s")]+)', line)
    }
    shown = {
        route for path in called for pattern, route in patterns.items() if re.fullmatch(pattern + r"(\?.*)?", path)
    }
    assert shown == set(routes)
    assert [path for path in called if not any(re.fullmatch(p + r"(\?.*)?", path) for p in patterns)] == []


def test_api_document_names_every_form_field_and_stage() -> None:
    document = text_of(DOCS / "api.md")
    paths = yaml.safe_load(text_of(ROOT / "openapi.yaml"))["paths"]
    form = paths["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert [name for name in (*form, *Stage) if f"`{name}`" not in document] == []


def test_answers_in_the_api_document_are_valid() -> None:
    blocks = fenced(text_of(DOCS / "api.md"), "json")
    for block, model in zip(blocks, (JobView, ArtifactList, Problem), strict=True):
        model.model_validate_json(block)
        shown = json.loads(block)
        assert set(shown) == set(model.model_fields) - {"cause"}
        assert keys_in(shown) - field_names(model) == set()


# Findings and bundles


def test_excerpt_of_the_readme_has_fields_of_the_findings() -> None:
    (excerpt,) = fenced(section(text_of(README), "What comes back"), "json")
    assert keys_in(json.loads(excerpt)) - field_names(Findings) == set()


def test_findings_document_names_every_field() -> None:
    document = text_of(DOCS / "findings.md")
    # Parts of codes, references and boxes are explained in words.
    in_words = {"scheme", "value", "meaning", "name", "version", "sha256", "message", "subject", "code"}
    assert {name for name in field_names(Findings) - in_words if f"`{name}`" not in document} == set()


def test_findings_document_names_every_warning() -> None:
    document = first_cells(section(text_of(DOCS / "findings.md"), "Warnings"))
    assert set(warning_codes()) - set(document) == set()


def warning_codes() -> Iterator[str]:
    """Codes given as plain words to Notice(...) and FindingsWarning(code=...)."""
    for package in ("imaging", "inference", "reporting"):
        for path in (ROOT / "service" / package).glob("*.py"):
            for node in ast.walk(ast.parse(text_of(path))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    given = [keyword.value for keyword in node.keywords if keyword.arg == "code"] or node.args[:1]
                    if node.func.id in {"Notice", "FindingsWarning"} and given and isinstance(given[0], ast.Constant):
                        yield str(given[0].value)


def test_bundle_document_names_every_key_and_rule() -> None:
    document = text_of(DOCS / "bundles.md")
    names = set(Manifest.model_fields) | set(Label.model_fields)
    for rule in get_args(get_args(Rule)[0]):
        names |= {rule.model_fields["rule"].default, *rule.model_fields} - {"rule"}
    assert {name for name in names if f"`{name}`" not in document} == set()


def test_text_document_names_every_template_and_encoder() -> None:
    document = text_of(DOCS / "text-embeddings.md")
    assert [name for name in (*TEMPLATES, *ENCODERS) if f"`{name}`" not in document] == []
    assert [
        text for name, text in TEMPLATES.items() if name != "published" and f'`{name}` "{text}"' not in document
    ] == []


# The documents themselves


@by_name
def test_links_between_documents_resolve(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (document.parent / target).resolve() if target else document
        if not path.is_file() or (anchor and anchor not in anchors(text_of(path))):
            broken.append(link)
    assert broken == []


@by_name
def test_no_figure_is_left_open(document: Path) -> None:
    assert re.findall(r"@@.*?@@", text_of(document), re.DOTALL) == []


def test_changelog_has_a_section_for_what_comes_or_for_this_version() -> None:
    version = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["version"]
    first = re.search(r"^## (.*)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert first
    assert first[1].startswith(("Unreleased", version))


def test_licence_is_the_one_that_is_declared() -> None:
    declared = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["license"]
    assert declared == "Apache-2.0"
    assert text_of(ROOT / "LICENSE") == text_of(ROOT / "model_export" / "licence-apache-2.0.txt")
