"""`viscera-export add-label`, then `verify` and `viscera segment` with what it wrote, as a user calls them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from model_export.cli import app as export_app
from model_export.sample import read_sample
from service.catalog import Catalog
from service.cli import app as viscera_app
from service.reporting.schema import Findings
from tests.export.conftest import WriteCheckpoint
from tests.support.added_label import NEW_ROWS, SPLEEN_TUMOR, UTERUS, with_row, write_features
from tests.support.nifti_files import write_nifti
from training.checkpoint import Checkpoint


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(export_app, [str(argument) for argument in arguments])


def _failed_with_one_line(result: Result) -> str:
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def extended(
    written_bundle: Path, checkpoint: Checkpoint, checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle with an organ and then a lesion more; the organ's threshold halves its logits on the sample."""
    folder = tmp_path_factory.mktemp("extended")
    window = torch.from_numpy(read_sample(written_bundle / "sample.npz").window.astype(np.float32))
    with torch.inference_mode():
        middle = with_row(checkpoint, "uterus", NEW_ROWS[0]).model(window)[0, 32].median()
    (folder / "uterus.toml").write_text(f"threshold = {float(middle.sigmoid()):.6f}\n" + UTERUS)
    (folder / "tumor.toml").write_text(SPLEEN_TUMOR.replace('"stomach"', '"uterus"'))
    features = write_features(folder / "new.safetensors")
    common = ("--checkpoint", checkpoint_path, "--embedding", features, "--out", folder)
    first = _run("add-label", written_bundle, *common, "--label", folder / "uterus.toml", "--version", "1.3.0")
    assert first.exit_code == 0, first.stderr
    second = _run(
        "add-label", folder / "viscera-small-1.3.0", *common, "--label", folder / "tumor.toml", "--version", "1.4.0",
        "--name", "viscera-more",
    )  # fmt: skip
    assert second.exit_code == 0, second.stderr
    assert "viscera-more-1.4.0" in second.stdout
    return folder / "viscera-more-1.4.0"


def test_a_study_is_segmented_with_34_labels(extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    study = write_nifti(tmp_path / "ct.nii.gz")
    for targets in ("all", "uterus"):
        options = ["--bundle", str(extended), "--engine", "onnxruntime", "--targets", targets]
        result = CliRunner().invoke(viscera_app, ["segment", str(study), "--out", str(tmp_path / targets), *options])
        assert result.exit_code == 0, result.output

    findings = Findings.model_validate_json((tmp_path / "all" / "findings.json").read_text())
    assert len(findings.organs) == 26
    assert findings.organs[-1].label == "uterus"
    assert [label.label for label in findings.lesion_labels][-1] == "spleen_tumor"
    assert len(findings.lesion_labels) == 8
    masks = list((tmp_path / "all" / "masks").iterdir())
    assert len(masks) == 34
    uterus = np.asarray(nib.load(tmp_path / "all" / "masks" / "uterus.nii.gz").dataobj).astype(bool)
    assert findings.organs[-1].present
    assert uterus.any()
    assert not uterus.all()
    label_map = nib.load(tmp_path / "all" / "segmentation.nii.gz")
    names = label_map.header.extensions[0].get_content().decode()
    assert '<Label Key="33"' in names
    assert '<Label Key="34"' in names
    # Alone it is the same mask, and nothing lies over it in the label map.
    alone = np.asarray(nib.load(tmp_path / "uterus" / "segmentation.nii.gz").dataobj)
    np.testing.assert_array_equal(alone, np.where(uterus, 33, 0))
    assert findings.provenance.bundle.name == "viscera-more"
    (entry,) = [entry for entry in Catalog([extended.parent]).entries() if entry.id == "viscera-more-1.4.0"]
    assert [label.name for label in entry.manifest.labels][32:] == ["uterus", "spleen_tumor"]


def test_the_extended_bundle_holds_against_its_checkpoint_and_not_against_another(
    extended: Path, checkpoint_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    verified = _run("verify", extended, "--checkpoint", checkpoint_path)
    assert verified.exit_code == 0, verified.stderr
    assert "sample logits of added labels" in verified.stdout
    line = _failed_with_one_line(_run("verify", extended, "--checkpoint", write_checkpoint(1)))
    for subject in ("checkpoint hash", "head K", "sample logits of added labels", "onnxruntime fp32"):
        assert subject in line


def test_add_label_refuses_in_one_line_and_leaves_nothing(
    written_bundle: Path, checkpoint_path: Path, write_checkpoint: WriteCheckpoint, tmp_path: Path
) -> None:
    label, features = tmp_path / "uterus.toml", write_features(tmp_path / "new.safetensors")
    label.write_text(UTERUS)
    taken, homeless = tmp_path / "liver.toml", tmp_path / "tumor.toml"
    taken.write_text(UTERUS.replace('"uterus"', '"liver"'))
    homeless.write_text(SPLEEN_TUMOR.replace('"spleen"', '"heart"'))
    narrow = tmp_path / "narrow.pth"
    torch.save(torch.zeros(1, 256), narrow)
    out = tmp_path / "out"
    good: dict[str, Path | str] = {
        "bundle": written_bundle, "--checkpoint": checkpoint_path, "--label": label, "--embedding": features,
        "--version": "1.3.0",
    }  # fmt: skip
    for change, reason in (
        ({"bundle": tmp_path / "absent"}, "has no readable manifest.json"),
        ({"--checkpoint": tmp_path / "absent"}, "There is no checkpoint"),
        ({"--checkpoint": write_checkpoint(1)}, "is not that of the bundle"),
        ({"--label": tmp_path / "absent.toml"}, "absent.toml cannot be read"),
        ({"--label": taken}, "has a label 'liver' already"),
        ({"--label": homeless}, "The host 'heart'"),
        ({"--embedding": narrow}, "needed: (names, 512)"),
        ({"--version": "two"}, "is not a semantic version"),
    ):
        given = {**good, **change}
        bundle = given.pop("bundle")
        options = [part for option in given.items() for part in option]
        assert reason in _failed_with_one_line(_run("add-label", bundle, *options, "--out", out)), reason
        assert not out.exists(), reason
    (out / "viscera-small-1.3.0").mkdir(parents=True)
    options = [part for option in good.items() for part in option if option[0] != "bundle"]
    assert "exists already" in _failed_with_one_line(_run("add-label", written_bundle, *options, "--out", out))
    assert list((out / "viscera-small-1.3.0").iterdir()) == []


def test_a_head_without_a_row_for_each_label_is_damage(extended: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / extended.name
    copy.mkdir()
    for path in extended.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["labels"].pop()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    line = _failed_with_one_line(_run("verify", copy, "--checkpoint", checkpoint_path))
    assert "33 labels are in the manifest, 34 in head.safetensors and 34 in sample.npz" in line
