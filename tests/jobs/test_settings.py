"""The environment, and the way to a child process."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_settings_reach_a_child_process_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        data_dir=tmp_path, bundles_dir=[tmp_path / "a", tmp_path / "b"], threads=2, log_json=True, port=0
    )
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
    assert settings.database_url == f"sqlite:///{tmp_path}/jobs.sqlite3"


def test_every_setting_says_what_it_is_for() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_relative_data_folder_is_taken_from_where_the_service_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VISCERA_DATA_DIR", "data")
    settings = Settings()
    assert settings.data_dir == tmp_path / "data"
    assert settings.database_url == f"sqlite:///{tmp_path}/data/jobs.sqlite3"
    assert settings.broker_dir == tmp_path / "data" / "broker"


@pytest.mark.parametrize(
    ("name", "value"), [("LEASE_SECONDS", "0"), ("MAX_ATTEMPTS", "0"), ("ENGINE", "tensorflow"), ("PORT", "70000")]
)
def test_setting_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"VISCERA_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()
