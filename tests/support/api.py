"""The API over a real job table and storage in a temporary folder, with a queue that only takes notes."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.jobs.job import JobError, Priority
from service.jobs.keys import ALL_SCOPES, KeyStore, Scope
from service.jobs.store import JobStore
from service.main import create_app
from service.settings import Settings
from service.storage import LocalStorage
from tests.support.findings import example_findings
from tests.support.live import live_server
from tests.support.stored import stored_paths

OWNER = "test-worker"
LIVER = {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}
NEOPLASM = {"scheme": "SCT", "value": "108369006", "meaning": "Neoplasm"}


def write_model(folder: Path, name: str = "viscera-compact", version: str = "9.0.0") -> Path:
    """A bundle folder with the part of the manifest that the API reads, newer than the packaged one; it cannot run."""
    bundle = folder / f"{name}-{version}"
    bundle.mkdir(parents=True)
    labels = [
        {
            "index": 1,
            "name": "liver",
            "display_name": "Liver",
            "kind": "organ",
            "hosts": [],
            "color": [180, 90, 60],
            "type": LIVER,
        },
        {
            "index": 2,
            "name": "liver_tumor",
            "display_name": "Liver tumor",
            "kind": "tumor",
            "hosts": ["liver"],
            "color": [230, 200, 40],
            "type": NEOPLASM,
        },
    ]
    manifest = {
        "schema_version": 1,
        "name": name,
        "version": version,
        "description": "Two labels.",
        "intended_use": "Tests.",
        "licence": "Apache-2.0",
        "labels": labels,
        "preprocessing": {"spacing_mm": [2.0, 2.0, 2.0]},
        "precisions": [{"name": "fp32"}],
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@dataclass
class Api:
    """A started application and the things behind it."""

    app: FastAPI
    client: httpx.Client
    store: JobStore
    storage: LocalStorage
    settings: Settings
    keys: KeyStore
    key: str
    dispatched: list[str] = field(default_factory=list)

    def submit(self, content: bytes = b"scan", name: str = "ct.nii.gz", **fields: str) -> dict[str, Any]:
        """A queued job for a small upload."""
        response = self.client.post("/v1/jobs", files={"files": (name, content)}, data=fields)
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    def succeed(self, job_id: str) -> None:
        """End a queued job as a worker would, with findings, one mask and a picture."""
        job = self.store.claim(job_id, OWNER, 30.0)
        assert job is not None
        folder = self.storage.begin_result(job_id, job.attempts)
        contents = {
            "findings.json": (json.dumps(example_findings()).encode(), "application/json"),
            "overview.png": (b"\x89PNG\r\n\x1a\n", "image/png"),
            "masks/liver.nii.gz": (b"0123456789", "application/gzip"),
        }
        listing = []
        for name, (content, media_type) in contents.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            digest = sha256(content).hexdigest()
            listing.append({"name": name, "media_type": media_type, "bytes": len(content), "sha256": digest})
        (folder / "artifacts.json").write_text(json.dumps(listing))
        self.storage.publish_result(job_id, job.attempts)
        assert self.store.succeed(job_id, OWNER, [{"code": "anisotropic", "message": "Thick slices."}])

    def client_with(self, key: str | None) -> httpx.Client:
        """A client with another key, or with none."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.client.base_url, headers=headers, timeout=20.0)

    def client_of(self, tenant: str, *scopes: Scope, **limits: int) -> httpx.Client:
        """A client with a new key of that tenant."""
        return self.client_with(self.keys.create(name="test", tenant=tenant, scopes=scopes or ALL_SCOPES, **limits)[1])

    def fail(self, job_id: str) -> None:
        """End a queued job as a worker would that found no CT in it."""
        assert self.store.claim(job_id, OWNER, 30.0) is not None
        error = JobError("not-hu", "The intensities are not in Hounsfield units", "The values span 0 to 1; send HU.")
        assert self.store.fail(job_id, OWNER, error)

    def until_waiting(self, number: int = 1) -> None:
        """Return once `number` requests wait for a change: only then have they seen the job as it is."""
        deadline = time.monotonic() + 30
        while len(self.app.state.services.watch._waiters) < number:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def once_waited_for(self, work: Callable[[], object]) -> None:
        """Do `work` in another thread, once a request waits."""

        def wait_and_work() -> None:
            self.until_waiting()
            work()

        threading.Thread(target=wait_and_work, daemon=True).start()

    def stored_files(self) -> list[Path]:
        """Every file and folder below the storage's folders, the job table aside."""
        return stored_paths(self.settings.data_dir)


@contextmanager
def running_api(folder: Path, storage: LocalStorage | None = None, **settings: Any) -> Iterator[Api]:
    """The API behind a real socket of this process, over files below `folder`."""
    models = folder / "models"
    if not models.exists():
        write_model(models)
    chosen = Settings(data_dir=folder / "data", bundles_dir=[models], **settings)
    store = JobStore(chosen.database_url)
    storage = storage or LocalStorage(chosen.data_dir)
    dispatched: list[str] = []

    def dispatch(job_id: str, _priority: Priority) -> bool:
        dispatched.append(job_id)
        return True

    keys = KeyStore(store.engine)
    key = keys.create(name="test")[1]
    app = create_app(chosen, store, storage, dispatch)
    authorization = {"Authorization": f"Bearer {key}"}
    try:
        with live_server(app) as url, httpx.Client(base_url=url, headers=authorization, timeout=20.0) as client:
            yield Api(app, client, store, storage, chosen, keys, key, dispatched)
    finally:
        store.close()
