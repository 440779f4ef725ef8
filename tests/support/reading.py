"""The whole way from an upload to its volume, and the real scans beside the repository."""

from pathlib import Path

import pytest

from service.imaging.study import ReadLimits, read_study, read_volume, select_ct_series
from service.imaging.volume import Volume

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


def read_upload(upload: Path, scratch: Path, limits: ReadLimits | None = None) -> Volume:
    """Study, series and volume in one step."""
    return read_volume(select_ct_series(read_study(upload, scratch, limits)))


def notice_codes(volume: Volume) -> list[str]:
    """The codes of a volume's notices, in order."""
    return [notice.code for notice in volume.notices]


def real_scan(name: str) -> Path:
    """A folder or file of ../shared/data; the test is skipped where it is absent."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"real CT data absent: ../shared/data/{name}")
    return path
