"""A real PACS: Orthanc with its DICOMweb plugin, in a process and a folder of its own, on the loopback interface."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from dicomweb_client import DICOMwebClient

USERNAME, PASSWORD = "viscera", "s3cret-of-the-pacs"
AE_TITLE = "ORTHANC"
PLUGINS = Path("/usr/share/orthanc/plugins")
INSTALL = "no Orthanc with DICOMweb; install it: apt-get install orthanc orthanc-dicomweb"
START_SECONDS = 30.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    http_port: int
    dicom_port: int
    http: httpx.Client

    @property
    def dicomweb(self) -> str:
        """Root of its DICOMweb service."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def host(self) -> str:
        """As in the setting `reference_hosts`."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def peer(self) -> dict[str, Any]:
        """As in the setting `peers`."""
        return {"url": self.dicomweb, "username": USERNAME, "password": PASSWORD}

    @property
    def node(self) -> dict[str, Any]:
        """Its application entity, as in the setting `peers`."""
        return {"ae_title": AE_TITLE, "host": "127.0.0.1", "port": self.dicom_port}

    def wado(self) -> DICOMwebClient:
        """A client that none of our code is in."""
        from dicomweb_client.session_utils import create_session_from_auth
        from requests.auth import HTTPBasicAuth

        return DICOMwebClient(self.dicomweb, session=create_session_from_auth(HTTPBasicAuth(USERNAME, PASSWORD)))

    def upload(self, files: list[Path]) -> None:
        """Put DICOM files into it, by its own way."""
        for path in files:
            self.http.post("/instances", content=path.read_bytes()).raise_for_status()

    def register(self, name: str, *, dicomweb: str, key: str) -> None:
        """Make a DICOMweb server known to it, with an API key."""
        server = {"Url": dicomweb, "HttpHeaders": {"Authorization": f"Bearer {key}"}}
        self.http.put(f"/dicom-web/servers/{name}", json=server).raise_for_status()

    def instances(self) -> list[str]:
        """Its own ids of all instances."""
        found: list[str] = self.http.get("/instances").json()
        return found

    def clear(self) -> None:
        """Forget every patient."""
        for patient in self.http.get("/patients").json():
            self.http.delete(f"/patients/{patient}").raise_for_status()


@contextmanager
def running_orthanc(folder: Path, modalities: Mapping[str, list[object]] | None = None) -> Iterator[Orthanc]:
    """An empty Orthanc that ends with the block; the test is skipped where there is none.

    Args:
        folder: for its configuration and data.
        modalities: name -> [AE title, host, port], to which it may C-STORE.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    plugin = PLUGINS / "libOrthancDicomWeb.so"
    if program is None or not plugin.exists():
        pytest.skip(INSTALL)
    http_port, dicom_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(plugin)],
        "HttpPort": http_port,
        "DicomPort": dicom_port,
        "DicomAet": AE_TITLE,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USERNAME: PASSWORD},
        "DicomModalities": dict(modalities or {}),
        "DicomCheckModalityHost": False,
        "DicomAlwaysAllowStore": True,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StowMaxInstances": 5},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{http_port}", auth=(USERNAME, PASSWORD), timeout=30, trust_env=False
        ) as http:
            _wait_for(http, process, folder)
            yield Orthanc(http_port, dicom_port, http)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(http: httpx.Client, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, (folder / "orthanc.log").read_text()
        assert time.monotonic() < deadline, "Orthanc does not answer"
        try:
            if http.get("/system").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
