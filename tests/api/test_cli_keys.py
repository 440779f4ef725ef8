"""`viscera keys`, and the first key that `viscera serve` makes."""

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.cli.local_key import keep_local_key, key_for, read_local_key
from service.jobs.keys import KeyStore, Scope
from service.settings import Settings

run = CliRunner().invoke
pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("VISCERA_API_KEY", raising=False)
    return Settings()


def keys_of(settings: Settings) -> KeyStore:
    return KeyStore.open(settings.database_url)


def test_a_key_is_printed_once_alone_and_works(settings: Settings):
    options = ["--tenant", "radiology", "--scopes", "submit,read", "--rate-limit", "60", "--quota", "5"]
    created = run(app, ["keys", "create", "PACS [west]", *options])
    listed = run(app, ["keys", "list"], env={"COLUMNS": "200"})

    assert created.exit_code == 0, created.output
    text = created.stdout.strip()
    keys = keys_of(settings)
    key = keys.authenticate(text)
    keys.close()
    assert (key.tenant, key.name, key.rate_limit, key.quota) == ("radiology", "PACS [west]", 60, 5)
    assert key.scopes == {Scope.SUBMIT, Scope.READ}
    for shown in (key.id, "PACS [west]", "radiology", "submit, read", "60 requests/min, 5 unfinished jobs"):
        assert shown in listed.output
    assert text not in listed.output
    assert text.rpartition("_")[2] not in listed.output


def test_a_key_is_revoked_by_its_id(settings: Settings):
    text = run(app, ["keys", "create", "viewer"]).stdout.strip()
    key_id = text.split("_")[1]

    assert run(app, ["keys", "revoke", key_id]).exit_code == 0
    again = run(app, ["keys", "revoke", key_id])

    assert again.exit_code == 2
    assert "(key-not-found)" in again.output


@pytest.mark.parametrize(
    "options",
    [
        ["x", "--scopes", "write"],
        ["x", "--scopes", ""],
        ["x", "--tenant", "a b"],
        ["x", "--tenant", "t" * 65],
        ["", "--tenant", "a"],
        ["a\nb"],
        ["x" * 201],
        ["x", "--quota", "0"],
    ],
)
def test_what_no_key_can_have_is_a_usage_error(settings: Settings, options: list[str]):
    result = run(app, ["keys", "create", *options])
    assert result.exit_code == 2
    assert "vsc_" not in result.output


def test_the_first_key_is_made_once_and_kept_for_this_user_only(settings: Settings):
    first = run(app, ["keys", "bootstrap"])
    second = run(app, ["keys", "bootstrap"])

    text = first.stdout.strip()
    assert text.startswith("vsc_first_")
    assert second.stdout == ""
    assert "already" in second.output
    assert read_local_key(settings.data_dir) == text
    assert stat.S_IMODE(settings.local_key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700


def test_without_authentication_no_key_is_made(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISCERA_AUTH", "none")
    assert run(app, ["keys", "bootstrap"]).stdout == ""


def test_the_kept_key_goes_to_this_machine_only(settings: Settings):
    settings.data_dir.mkdir()
    keep_local_key(settings, "vsc_first_kept")
    keep_local_key(settings, "vsc_first_newer")
    for here in ("http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"):
        assert key_for(here, None) == "vsc_first_newer"
    for elsewhere in ("https://viscera.example.org", "http://127.0.0.1.evil.example", "http://10.0.0.1", "nonsense"):
        assert key_for(elsewhere, None) is None
    assert key_for("https://viscera.example.org", "given") == "given"
