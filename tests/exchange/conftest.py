from collections.abc import Iterator

import pytest

from tests.support.orthanc import Orthanc, running_orthanc


@pytest.fixture(scope="session")
def shared_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture
def orthanc(shared_orthanc: Orthanc) -> Iterator[Orthanc]:
    """An empty PACS."""
    yield shared_orthanc
    shared_orthanc.clear()
