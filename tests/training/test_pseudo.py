"""Labels that a model fills in: only where nobody annotated, never for the test, never as truth."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.assembly import mask_of, small_phantom, write_lits
from training import cli, pseudo
from training.assembly import Split
from training.datasets.description import read_description
from training.datasets.errors import NoCases
from training.datasets.harmonize import Grid, ScanSource, harmonize
from training.evaluation.subjects import subjects_of_store
from training.labels import BY_NAME
from training.store import open_case, scan_names

GRID = Grid((6.0, 6.0, 6.0), None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One scan with liver and liver tumours annotated; the model calls the liver spleen and finds both kidneys."""
    harmonize(write_lits(tmp_path / "lits", [2]), read_description("lits"), tmp_path / "store", GRID, processes=1)

    def segment(studies: list[Path], out: Path, bundle: str | None) -> None:
        phantom = small_phantom(2)
        for study in studies:
            affine = nibabel.load(study).affine
            folder = out / study.name.removesuffix(".nii.gz") / "masks"
            folder.mkdir(parents=True)
            for name in BY_NAME:
                mask = mask_of(phantom.labels, "spleen" if name == "liver" else name).astype(np.uint8)
                nibabel.save(nibabel.Nifti1Image(mask, affine), folder / f"{name}.nii.gz")

    monkeypatch.setattr(pseudo, "segment", segment)
    monkeypatch.setattr("training.assembly._own_split", lambda source: Split.TRAIN)
    return tmp_path / "store"


def test_annotated_labels_stay_and_others_are_filled_in(store: Path, tmp_path: Path) -> None:
    arguments = ["pseudo-label", str(store), "--out", str(tmp_path / "more"), "--labels", "liver,kidney_left"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    phantom = small_phantom(2)
    before, after = open_case(store, "lits-0"), open_case(tmp_path / "more", "lits-0")
    bits = after.labels[after.codes]
    np.testing.assert_array_equal(mask_of(bits, "liver"), mask_of(before.labels[before.codes], "liver"))
    np.testing.assert_array_equal(mask_of(bits, "kidney_left"), mask_of(phantom.labels, "kidney_left"))
    assert after.supervised == before.supervised | 1 << BY_NAME["kidney_left"].channel
    np.testing.assert_array_equal(after.hu, before.hu)
    assert ScanSource.read(tmp_path / "more", "lits-0").pseudo == ("kidney_left",)


def test_what_was_filled_in_is_no_truth(store: Path, tmp_path: Path) -> None:
    pseudo.fill_in(store, tmp_path / "more", weights=None)
    assert open_case(tmp_path / "more", "lits-0").supervised >> BY_NAME["spleen"].channel & 1
    (subject,) = subjects_of_store(tmp_path / "more", None)
    assert subject.truth().supervised == open_case(store, "lits-0").supervised


def test_the_test_split_is_left_alone(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.assembly._own_split", lambda source: Split.TEST)
    with pytest.raises(NoCases, match="holds test scans only"):
        pseudo.fill_in(store, tmp_path / "more", weights=None)
    with pytest.raises(ValueError, match="Unknown labels livr"):
        pseudo.fill_in(store, tmp_path / "more", weights=None, labels=["livr"])


def test_scans_without_any_labels_can_be_brought_in(store: Path, tmp_path: Path) -> None:
    """An own dataset without a `label`: nothing is supervised until a model fills it in."""
    bare = read_description("lits").model_copy(update={"name": "bare", "label": None, "values": {}})
    (outcome,) = harmonize(tmp_path / "lits", bare, tmp_path / "bare_store", GRID, processes=1)
    assert outcome.status == "written"
    assert scan_names(tmp_path / "bare_store") == ["bare-0"]
    assert open_case(tmp_path / "bare_store", "bare-0").supervised == 0
    pseudo.fill_in(tmp_path / "bare_store", tmp_path / "more", weights=None, labels=["spleen"])
    assert open_case(tmp_path / "more", "bare-0").supervised == 1 << BY_NAME["spleen"].channel
