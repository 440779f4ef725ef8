"""Exchange with a real PACS: what Orthanc holds comes by reference, and what it gets from us is what was written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from service.exchange.plan import StudyReference
from service.exchange.push import push_result
from service.exchange.wado import fetch_study
from service.progress import no_progress
from service.settings import Settings
from tests.support.dicom_result import write_result
from tests.support.dicom_series import write_ct_series
from tests.support.orthanc import Orthanc

MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings(orthanc: Orthanc, tmp_path: Path) -> Settings:
    peers = {"pacs": orthanc.peer, "node": orthanc.node}
    return Settings(data_dir=tmp_path / "data", peers=peers, reference_hosts=[orthanc.host])


def test_referenced_study_and_series_arrive_as_they_are_stored(orthanc: Orthanc, settings: Settings, tmp_path: Path):
    files = write_ct_series(tmp_path / "ct")
    orthanc.upload(files)
    first = pydicom.dcmread(files[0])
    study = f"{orthanc.dicomweb}/studies/{first.StudyInstanceUID}"

    for place, url in enumerate((study, f"{study}/series/{first.SeriesInstanceUID}")):
        folder = fetch_study(StudyReference(url=url, credentials="pacs"), tmp_path / str(place), settings, no_progress)

        fetched = {dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, folder.iterdir())}
        assert len(fetched) == len(files)
        for path in files:
            sent = pydicom.dcmread(path)
            assert fetched[sent.SOPInstanceUID].PixelData == sent.PixelData


@pytest.mark.parametrize("destination", ["pacs", "node"])
def test_results_in_the_pacs_are_those_that_were_written(
    orthanc: Orthanc, settings: Settings, tmp_path: Path, destination: str
):
    result = write_result(tmp_path)

    assert push_result(result.folder, [destination], settings, no_progress) == []

    written = [pydicom.dcmread(path) for path in sorted((result.folder / "dicom").iterdir())]
    assert [one.Modality for one in written] == ["DOC", "RTSTRUCT", "SEG", "SEG", "SR"]
    client = orthanc.wado()
    for there in written:
        back = client.retrieve_instance(there.StudyInstanceUID, there.SeriesInstanceUID, there.SOPInstanceUID)
        assert same(back, there)
        if there.Modality == "SEG":
            assert np.array_equal(back.pixel_array, there.pixel_array)
    assert len(orthanc.instances()) == len(written)


def same(one: Dataset, other: Dataset) -> bool:
    """Equal elements, whatever the transfer syntax that they came in."""
    return one.to_json_dict() == other.to_json_dict()
