"""`viscera open`: the page at a job, in a browser where there is one; and completion in the shell."""

import webbrowser
from uuid import UUID

import pytest
from typer.testing import CliRunner

from service.cli import app

run = CliRunner().invoke

JOB = str(UUID(int=7))
ADDRESS = f"http://ct.example:8000/#{JOB}"
OPEN = ["open", JOB, "--url", "http://ct.example:8000/"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked for; there is a display."""
    addresses: list[str] = []

    def browse(address: str) -> bool:
        addresses.append(address)
        return True

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", browse)
    return addresses


def test_the_page_is_opened_at_the_job(opened):
    result = run(app, OPEN)
    assert (result.exit_code, result.stdout) == (0, "")
    assert opened == [ADDRESS]


def test_the_address_is_only_printed_when_asked(opened):
    result = run(app, [*OPEN, "--print"])
    assert (result.exit_code, result.stdout) == (0, f"{ADDRESS}\n")
    assert opened == []


@pytest.mark.parametrize("answer", [False, webbrowser.Error("could not locate runnable browser")])
def test_without_a_browser_the_address_is_printed(opened, monkeypatch, answer):
    def browse(_address: str) -> bool:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(webbrowser, "open", browse)
    assert run(app, OPEN).stdout == f"{ADDRESS}\n"


def test_without_a_display_no_browser_of_the_terminal_is_started(opened, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert run(app, OPEN).stdout == f"{ADDRESS}\n"
    assert opened == []


@pytest.mark.parametrize("job", ["latest", "../../etc/passwd", "javascript:alert(1)"])
def test_what_is_no_job_id_is_refused(opened, job):
    assert run(app, ["open", job]).exit_code == 2
    assert opened == []


def test_completion_can_be_installed():
    shown = run(app, ["--help"]).output
    assert "--install-completion" in shown
    assert "--show-completion" in shown


def test_commands_are_completed(monkeypatch):
    monkeypatch.setenv("_VISCERA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "viscera se")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run(app, [], prog_name="viscera").stdout.split() == ["serve", "segment"]
