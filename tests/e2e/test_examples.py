"""The examples of README and docs/api.md, run against a service as their reader would run them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.cli.local_key import read_local_key
from service.client import Viscera
from service.jobs.keys import KeyStore, Scope
from service.jobs.store import JobStore
from service.settings import Settings
from tests.support.documents import DOCS, README, ROOT, fenced, text_of
from tests.support.service_process import running_service
from tests.support.shell import run_script
from training.phantom.phantom import FieldOfView, draw_phantom
from training.phantom.write import write_ct, write_dicom

API = DOCS / "api.md"
ADDRESS, KEY, KEY_ID = "http://127.0.0.1:8000", "vsc_...", "3f9c0d5e7a21"
"""What the documents write for the address of the service, a key, and the id of one to revoke."""

UPPER_ABDOMEN = FieldOfView(-20.0, 60.0)
NOT_RUN = {
    '"url": "https://pacs.example.org/dicom-web/studies': "the PACS is nobody's; docs/viewers.md has one that is run",
    "viscera serve & viscera scp": "starts servers that do not end; their settings are read below",
    "callback_url=https://pacs.example.org": "calls a host that is nobody's; tests/api/test_webhooks.py has one",
    "from standardwebhooks": "needs a delivery; tests/api/test_webhooks.py verifies one in this way",
}
"""Part of an example -> why it is not run. Whatever is not named here is."""


@dataclass(frozen=True)
class Example:
    """A fenced block of a document."""

    document: Path
    language: str
    code: str

    @property
    def reasons(self) -> list[str]:
        """Why it is not run."""
        return [reason for part, reason in NOT_RUN.items() if part in self.code]

    def __str__(self) -> str:
        line = text_of(self.document)[: text_of(self.document).index(self.code)].count("\n") + 1
        return f"{self.document.name}:{line}"


EXAMPLES = [
    Example(document, language, code)
    for document in (README, API)
    for language in ("sh", "python")
    for code in fenced(text_of(document), language)
]


@dataclass(frozen=True)
class Place:
    """A service, and a folder with the files that the examples name."""

    viscera: Viscera
    folder: Path
    key: str
    spare_key_id: str
    variables: dict[str, str]

    def filled(self, code: str) -> str:
        """The code with this service in it."""
        return code.replace(ADDRESS, self.viscera.url).replace(KEY, self.key).replace(KEY_ID, self.spare_key_id)

    def received_job(self) -> str:
        """Id of a job that waits for more of its study."""
        kind = 'multipart/related; type="application/dicom"; boundary=b'
        content = (self.folder / "body").read_bytes()
        answer = self.viscera._http.post("/dicomweb/studies", content=content, headers={"Content-Type": kind})
        return answer.headers["Location"].rpartition("/")[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("examples")
    data_dir = folder / "data"
    write_studies(folder)
    with running_service(data_dir, VISCERA_STUDY_QUIET_SECONDS="3600") as (viscera, _):
        key = read_local_key(data_dir)
        assert key is not None
        store = JobStore(Settings(data_dir=data_dir).database_url)
        spare = KeyStore(store.engine).create(name="spare", tenant="default", scopes=(Scope.READ,))[0]
        store.close()
        viscera.submit([folder / "ct.nii.gz"])
        job_id = str(viscera.submit([folder / "ct.nii.gz"])["id"])
        assert viscera.wait(job_id)["status"] == "succeeded"
        variables = {
            "JOB": job_id,
            "ETAG": viscera._http.get(f"/v1/jobs/{job_id}").headers["ETag"],
            "ID": re.findall(r"^id: (.*)$", viscera._http.get(f"/v1/jobs/{job_id}/events").text, re.MULTILINE)[-1],
            "NEXT": str(viscera.jobs(limit=1)["next_cursor"]),
            "VISCERA_API_KEY": key,
            "VISCERA_DATA_DIR": str(data_dir),
            "VISCERA_URL": viscera.url,
        }
        yield Place(viscera, folder, key, spare.id, variables)


def write_studies(folder: Path) -> None:
    """ct.nii.gz, a.nii.gz and b.nii.gz; as DICOM in dicom/, 1.dcm, 2.dcm, study.zip, studies/; body for STOW-RS."""
    phantom, other = (draw_phantom(seed, spacing_mm=(4.0, 4.0, 5.0), field_of_view=UPPER_ABDOMEN) for seed in (41, 42))
    for name, scan in {"ct": phantom, "a": phantom, "b": other}.items():
        write_ct(scan, folder / f"{name}.nii.gz")
    slices = write_dicom(phantom, folder / "dicom")
    for number, path in enumerate(slices[:2], start=1):
        shutil.copy(path, folder / f"{number}.dcm")
    shutil.make_archive(str(folder / "study"), "zip", folder / "dicom")
    (folder / "studies").mkdir()
    shutil.copy(folder / "study.zip", folder / "studies" / "a.zip")
    write_dicom(other, folder / "other")
    shutil.make_archive(str(folder / "studies" / "b"), "zip", folder / "other")
    head = b"--b\r\nContent-Type: application/dicom\r\n\r\n"
    (folder / "body").write_bytes(head + slices[0].read_bytes() + b"\r\n--b--\r\n")


def test_each_reason_is_for_one_example() -> None:
    assert [len([one for one in EXAMPLES if part in one.code]) for part in NOT_RUN] == [1] * len(NOT_RUN)


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.language == "sh" and not one.reasons], ids=str)
def test_it_runs_in_a_shell(place: Place, example: Example) -> None:
    setup = next(one.code for one in EXAMPLES if one.document == API) if example.document == API else ""
    variables = dict(place.variables)
    if "/cancel" in example.code:  # one that has not ended
        variables["JOB"] = place.received_job()
    run_script(place.filled(f"{setup}\n{example.code}"), place.folder, **variables)


@pytest.mark.parametrize("example", [one for one in EXAMPLES if one.language == "python" and not one.reasons], ids=str)
def test_it_runs_in_python(place: Place, example: Example) -> None:
    (place.folder / "example.py").write_text(place.filled(example.code))
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=place.folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert (place.folder / "result" / "overview.png").is_file()


def test_the_settings_that_are_exported_are_valid(tmp_path: Path) -> None:
    [settings] = [one.code for one in EXAMPLES if "export VISCERA_PEERS" in one.code]
    exports = settings.partition("\nviscera serve")[0]
    code = "from service.settings import Settings; print(*Settings().peers)"
    assert run_script(f"{exports}\n'{sys.executable}' -c '{code}'", tmp_path) == "pacs archive station\n"
