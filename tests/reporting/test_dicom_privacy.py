"""What objects say about the patient: no more than the standard demands, and nothing when they are de-identified."""

import logging
import warnings

import pydicom
import pytest

from service.reporting.dicom.objects import RESEARCH_USE
from tests.support.dicom_result import DICOM, complaints, write_result

OBJECTS = ("seg-organs.dcm", "seg-lesions.dcm", "sr.dcm", "rtstruct.dcm", "report.dcm")

DEMANDED = {
    "PatientName": "Zebulon^Quagmire",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19420607",
    "PatientSex": "M",
    "StudyDate": "20190504",
    "StudyTime": "101112",
    "StudyID": "ST-0815",
    "AccessionNumber": "ACC-1234",
    "ReferringPhysicianName": "Doolittle^Jane",
}

BEYOND = {
    "InstitutionName": "Saint Nowhere Hospital",
    "PatientAddress": "Elm Street 13",
    "PatientAge": "077Y",
    "OperatorsName": "Tech^Nick",
    "StudyDescription": "CT of Zebulon",
    "PatientComments": "allergic to zebras",
    "StationName": "CT-ROOM-9",
}


def _identified(dataset, k) -> None:
    for keyword, value in (DEMANDED | BEYOND).items():
        setattr(dataset, keyword, value)


@pytest.fixture
def identified(tmp_path):
    return write_result(tmp_path, change=_identified)


@pytest.fixture
def deidentified(tmp_path):
    return write_result(tmp_path, change=_identified, deidentify=True)


def _text(result, name) -> str:
    """Everything in an object that is not a pixel."""
    dataset = result.dataset(name)
    dataset.pop("PixelData", None)
    return str(dataset)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_has_the_demanded_attributes_and_none_beyond(identified, name):
    dataset, text = identified.dataset(name), _text(identified, name)
    assert {keyword: str(dataset[keyword].value) for keyword in DEMANDED} == DEMANDED
    assert [value for value in BEYOND.values() if value in text] == []


@pytest.mark.parametrize("name", OBJECTS)
def test_a_deidentified_object_names_nobody_and_no_day(deidentified, name):
    dataset, text = deidentified.dataset(name), _text(deidentified, name)
    private = {**DEMANDED, **BEYOND}
    assert [value for keyword, value in private.items() if keyword != "PatientSex" and value in text] == []
    assert [keyword for keyword in DEMANDED if dataset[keyword].value] == []
    dates = {str(element.value) for element in dataset.iterall() if element.VR in ("DA", "DT") and element.value}
    assert {date[:8] for date in dates} <= {"19000101"}
    assert dataset.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in dataset.DeidentificationMethodCodeSequence] == ["113100", "113110"]
    assert complaints(deidentified.folder / "dicom" / name) == []


def test_a_deidentified_object_still_lies_on_its_images(deidentified):
    source = pydicom.dcmread(deidentified.series[0])
    dataset = deidentified.dataset("seg-organs.dcm")
    assert dataset.StudyInstanceUID == source.StudyInstanceUID
    assert dataset.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert len(dataset.SourceImageSequence) == 12


def test_other_files_and_file_names_hold_nothing_of_the_patient(tmp_path):
    identified = write_result(tmp_path, change=_identified, outputs=None)
    private = [value.encode() for value in (DEMANDED | BEYOND).values() if len(value) > 4]
    for path in identified.folder.rglob("*"):
        assert not any(value in path.name.encode() for value in private)
        if path.is_file() and path.suffix != ".dcm":
            assert not any(value in path.read_bytes() for value in private), path.name


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Quagmire^" + "Z" * 80),
        ("PatientBirthDate", "07.06.1942"),
        ("StudyDate", "20191399"),
        ("StudyTime", "quagmire"),
        ("AccessionNumber", "QUAGMIRE-1234567890"),
        ("PatientSex", "QUAGMIRE"),
    ],
)
def test_a_malformed_value_is_left_out_and_quoted_nowhere(tmp_path, caplog, capfd, keyword, value):
    def malformed(dataset, k) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.add(pydicom.DataElement(keyword, "LT", value))  # as text: no check of the value

    caplog.set_level(logging.DEBUG)
    result = write_result(tmp_path, change=malformed, outputs=DICOM)
    for name in OBJECTS:
        assert not result.dataset(name)[keyword].value
        assert complaints(result.folder / "dicom" / name) == []
    said = caplog.text + "".join(capfd.readouterr())
    assert value not in said


def test_a_name_beyond_ascii_is_kept(tmp_path):
    def named(dataset, k) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jürgen"

    result = write_result(tmp_path, change=named)
    for name in OBJECTS:
        assert result.dataset(name).PatientName == "Müller^Jürgen"
        assert result.dataset(name).SpecificCharacterSet == "ISO_IR 192"


def test_every_object_says_what_it_is_for(identified):
    segmentation, report, regions = (identified.dataset(name) for name in ("seg-organs.dcm", "sr.dcm", "rtstruct.dcm"))
    assert segmentation.ContentDescription == RESEARCH_USE
    assert regions.StructureSetDescription == RESEARCH_USE
    texts = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert any("Not a medical device" in text for text in texts)
