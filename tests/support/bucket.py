"""An S3 server in this process, and a bucket in it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from service.object_storage import ObjectStorage


@contextmanager
def s3_server() -> Iterator[str]:
    """The server's URL."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_server(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Tell AWS clients of this process and its children where the server is."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def new_bucket(folder: Path) -> ObjectStorage:
    """A storage in a bucket of its own; `folder` is the local disk."""
    bucket = f"viscera-{uuid4().hex}"
    storage = ObjectStorage(folder, f"s3://{bucket}/data")
    storage._fs.mkdir(bucket)
    return storage


def keys(storage: ObjectStorage) -> list[str]:
    """Every object, relative to the storage's prefix."""
    return sorted(key.removeprefix(f"{storage._prefix}/") for key in storage._fs.find(storage._prefix))
