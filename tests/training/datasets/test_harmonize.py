"""Five datasets in their own layouts to one store: geometry, labels, splits, resuming, and cases that are broken."""

import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.assembly import SPACING_MM, WRITERS, mask_of, small_phantom, write_chaos, write_lits
from training import cli
from training.assembly import Split, draw_splits, open_assembly
from training.datasets.description import DatasetDescription, known_datasets, read_description
from training.datasets.errors import AmbiguousLabelOrder, InvalidDescription, NoCases, UnknownDataset
from training.datasets.harmonize import Grid, Outcome, ScanSource, fingerprint, harmonize
from training.datasets.report import write_report
from training.detection import bounding_box
from training.labels import BY_NAME
from training.store import Case, open_case, read_source, scan_names

GRID = Grid(SPACING_MM, None)
run = CliRunner().invoke


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downloads")
    for name, write in WRITERS.items():
        write(folder / name, [2])
    return folder


@pytest.fixture(scope="module")
def store(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for name in WRITERS:
        outcomes = harmonize(downloads / name, read_description(name), folder, GRID, processes=1)
        assert [outcome.status for outcome in outcomes] == ["written"]
    return folder


def has(case: Case, *names: str) -> np.ndarray:
    return mask_of(case.labels[case.codes], *names)


def test_every_dataset_becomes_the_phantom_that_it_was_cut_from(store: Path) -> None:
    """The store's grid is the phantom's own: nothing is interpolated, and each voxel must come back."""
    phantom = small_phantom(2)
    assert scan_names(store) == ["chaos-1", "ct_org-0", "kits21-case_00000", "lits-0", "msd_spleen-spleen_0"]
    for name in scan_names(store):
        case = open_case(store, name)
        assert case.hu is not None
        np.testing.assert_array_equal(case.hu, phantom.hu, err_msg=name)
        for label in BY_NAME.values():
            if case.supervised >> label.channel & 1 and label.name != "liver_tumor":
                np.testing.assert_array_equal(
                    has(case, label.name), mask_of(phantom.labels, label.name), err_msg=f"{name} {label.name}"
                )


@pytest.mark.parametrize(("name", "supervised"), [
    ("chaos-1", {"liver"}),
    ("ct_org-0", {"liver", "urinary_bladder", "lung_right", "lung_left", "kidney_right", "kidney_left"}),
    ("kits21-case_00000", {"kidney_right", "kidney_left", "kidney_tumor", "kidney_cyst"}),
    ("lits-0", {"liver", "liver_tumor"}),
    ("msd_spleen-spleen_0", {"spleen"}),
])  # fmt: skip
def test_only_what_was_annotated_is_supervised(store: Path, name: str, supervised: set[str]) -> None:
    case = open_case(store, name)
    assert case.supervised == sum(1 << BY_NAME[label].channel for label in supervised)
    assert set(ScanSource.read(store, name).volumes_ml) == supervised
    assert not (np.bitwise_or.reduce(case.labels) & ~np.uint32(case.supervised))


def test_a_tumour_is_part_of_its_organ(store: Path) -> None:
    phantom = small_phantom(2)
    tumour = mask_of(phantom.labels, "liver_tumor", "hepatic_vessel_tumor")
    assert tumour.any()
    case = open_case(store, "lits-0")
    np.testing.assert_array_equal(has(case, "liver_tumor"), tumour)
    assert has(case, "liver")[tumour].all()


def test_volumes_are_those_of_the_original_grid(store: Path) -> None:
    phantom = small_phantom(2)
    spleen_ml = mask_of(phantom.labels, "spleen").sum() * np.prod(SPACING_MM) / 1000
    source = ScanSource.read(store, "msd_spleen-spleen_0")
    assert source.volumes_ml == {"spleen": pytest.approx(spleen_ml)}
    assert source.shape == phantom.hu.shape
    assert source.spacing_mm == pytest.approx(SPACING_MM)


def test_one_image_in_five_datasets_is_one_group_in_one_split(store: Path) -> None:
    assembly = open_assembly(store)
    assert len({source.fingerprint for source in assembly.scans.values()}) == 1
    assert len(set(assembly.splits.values())) == 1
    (split,) = set(assembly.splits.values())
    assert assembly.datasets(split)["lits"] == ("lits-0",)
    assert len(assembly.datasets(split)) == 5


def test_nothing_is_done_twice(store: Path, downloads: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    assert harmonize(downloads / "lits", read_description("lits"), store, GRID) == [Outcome("0", "present")]
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before


def test_a_case_at_another_spacing_is_not_taken_for_done(store: Path, downloads: Path) -> None:
    (outcome,) = harmonize(downloads / "lits", read_description("lits"), store, Grid((3.0, 3.0, 3.0), None))
    assert outcome.status == "OtherGrid"


def test_coarser_grid_and_crop(downloads: Path, tmp_path: Path) -> None:
    """Half the resolution and no air around: the liver keeps its volume and its place."""
    grid = Grid((12.0, 12.0, 12.0), -300.0)
    harmonize(downloads / "lits", read_description("lits"), tmp_path, grid, processes=1)
    case = open_case(tmp_path, "lits-0")
    phantom = small_phantom(2)
    assert case.hu is not None
    assert all(n <= -(-m // 2) for n, m in zip(case.hu.shape, phantom.hu.shape, strict=True))
    for axis in range(3):
        assert (case.hu > -300).any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all()
    liver_ml = mask_of(phantom.labels, "liver").sum() * 6**3
    assert has(case, "liver").sum() * 12**3 == pytest.approx(liver_ml, rel=0.05)
    # The scan's liver is as bright as the phantom's.
    inside = case.hu[has(case, "liver")]
    assert np.median(inside) == pytest.approx(np.median(phantom.hu[mask_of(phantom.labels, "liver")]), abs=10)


def break_cases(folder: Path) -> None:
    """LiTS with a good case 0 and one of each kind of broken ones."""
    write_lits(folder, [2])
    batch = folder / "Training Batch 1"
    good = nibabel.load(batch / "volume-0.nii")
    labels = np.asarray(nibabel.load(batch / "segmentation-0.nii").dataobj)
    hu = np.asarray(good.dataobj)

    def write(number: int, image: np.ndarray, values: np.ndarray | None, affine: np.ndarray = good.affine) -> None:
        nibabel.save(nibabel.Nifti1Image(image, affine), batch / f"volume-{number}.nii")
        if values is not None:
            nibabel.save(nibabel.Nifti1Image(values, affine), batch / f"segmentation-{number}.nii")

    (batch / "volume-1.nii").write_bytes(b"\x00" * 400)
    shutil.copy(batch / "segmentation-0.nii", batch / "segmentation-1.nii")
    write(2, hu, None)
    write(3, hu, labels[:-1])
    write(4, hu, np.where(labels == 1, 7, labels).astype(np.uint8))
    write(5, (hu // 16 + 100).clip(0, 255).astype(np.uint8), labels)
    write(6, hu[:, :, :3], labels[:, :, :3])
    write(7, np.stack([hu, hu], axis=3), labels)
    write(8, np.where(hu > 0, np.nan, hu).astype(np.float32), labels)
    write(9, hu, labels + np.float32(0.5))
    write(10, hu, labels, good.affine @ np.diag([0.001, 1, 1, 1]))
    shutil.copy(batch / "volume-0.nii", folder / "volume-0.nii")
    (batch / "volume-11.nii").write_bytes((batch / "volume-0.nii").read_bytes()[:-1000])
    shutil.copy(batch / "segmentation-0.nii", batch / "segmentation-11.nii")
    write(12, hu, np.ones_like(labels))


EXPECTED = {
    "0": "SeveralFiles", "1": "UnreadableFile", "2": "MissingLabel", "3": "GridMismatch", "4": "UnknownLabelValue",
    "5": "NotHounsfield", "6": "NotAVolume", "7": "NotAVolume", "8": "NotHounsfield", "9": "UnknownLabelValue",
    "10": "NotAVolume", "11": "UnreadableFile", "12": "UnknownLabelValue",
}  # fmt: skip


def test_broken_cases_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder, store = tmp_path / "lits", tmp_path / "store"
    break_cases(folder)
    description = read_description("lits")
    outcomes = harmonize(folder, description, store, GRID, processes=2)
    assert {outcome.case: outcome.status for outcome in outcomes} == EXPECTED
    assert scan_names(store) == []
    assert [file.name for file in store.iterdir()] == ["labels.json"]  # nothing half-written
    (folder / "volume-0.nii").unlink()
    outcomes = harmonize(folder, description, store, GRID, processes=1)
    assert {outcome.case: outcome.status for outcome in outcomes} == EXPECTED | {"0": "written"}
    markdown, table = write_report(store, description, outcomes)
    said = markdown.read_text()
    assert "| written | 1 |" in said
    assert "- 4: UnknownLabelValue. The label map holds 7; known values are 1, 2." in said
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["outcome"] for row in rows] == [
        EXPECTED[row["case"]] if row["case"] != "0" else "written" for row in rows
    ]
    assert float(rows[0]["liver"]) > 500


def test_dicom_slices_that_are_missing_or_mixed(tmp_path: Path) -> None:
    write_chaos(tmp_path / "gap", [2])
    slices = sorted((tmp_path / "gap").rglob("*.dcm"))
    slices[5].unlink()
    description = read_description("chaos")
    (outcome,) = harmonize(tmp_path / "gap", description, tmp_path / "store", GRID, processes=1)
    assert outcome.status == "UnevenSlices"
    for path in slices[:5] + slices[6:]:
        path.unlink()
    slices[0].write_bytes(b"no DICOM")
    (outcome,) = harmonize(tmp_path / "gap", description, tmp_path / "store", GRID, processes=1)
    assert outcome.status == "UnreadableFile"


def test_an_implausible_volume_is_pointed_out(tmp_path: Path) -> None:
    """A spleen as large as the liver."""
    folder = write_lits(tmp_path / "lits", [2])
    own = read_description("lits").model_copy(
        update={"name": "own", "values": {1: ("adrenal_gland_left",), 2: ("liver_tumor",)}}
    )
    outcomes = harmonize(folder, own, tmp_path / "store", GRID, processes=1)
    markdown, _ = write_report(tmp_path / "store", own, outcomes)
    assert "adrenal_gland_left of" in markdown.read_text()
    assert "is larger than 40 ml" in markdown.read_text()


OWN = r"""
name: own_hospital
title: Livers of our own
image: "{case}/ct.nii.gz"
label: "{case}/masks/{structure}.nii.gz"
structures:
  "liv*": [liver]
  kidneys: [kidneys]
patient: "(p\\d+)_.*"
exclude:
  "p9_.*": no consent
role: test
"""


def test_an_own_dataset_by_yaml(tmp_path: Path) -> None:
    phantom = small_phantom(2)
    for case in ("p1_a", "p1_b", "p9_a"):
        folder = tmp_path / "own" / case
        (folder / "masks").mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(phantom.hu, phantom.affine), folder / "ct.nii.gz")
        for name, labels in {
            "liver_a": ("liver",),
            "kidneys": ("kidney_right", "kidney_left"),
            "spleen": ("spleen",),
        }.items():
            mask = mask_of(phantom.labels, *labels).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(mask, phantom.affine), folder / "masks" / f"{name}.nii.gz")
    (tmp_path / "own.yaml").write_text(OWN)
    arguments = [
        "harmonize",
        str(tmp_path / "own"),
        "--as",
        str(tmp_path / "own.yaml"),
        "--out",
        str(tmp_path / "store"),
    ]
    result = run(cli.app, [*arguments, "--recipe", "default_compact", "--processes", "1"])
    assert result.exit_code == 0, result.output
    assert "no consent" in result.output
    assembly = open_assembly(tmp_path / "store")
    assert assembly.datasets(Split.TEST) == {"own_hospital": ("own_hospital-p1_a", "own_hospital-p1_b")}
    assert {source.patient for source in assembly.scans.values()} == {"own_hospital/p1"}
    assert set(ScanSource.read(tmp_path / "store", "own_hospital-p1_a").volumes_ml) == {
        "liver", "kidney_right", "kidney_left",
    }  # fmt: skip
    listed = run(cli.app, ["datasets", str(tmp_path / "store")])
    assert "own_hospital" in listed.output


@pytest.mark.parametrize(("change", "said"), [
    ({"structures": {"liver": ("livr",)}}, "unknown labels livr"),
    ({"label": "{case}.nii"}, r"`structures` goes with \{structure\}"),
    ({"patient": "p.*"}, "needs a group"),
    ({"exclude": {"(": "x"}}, "not a regular expression"),
    ({"name": "Own Hospital"}, "name"),
    ({"colour": "red"}, "Extra inputs"),
])  # fmt: skip
def test_descriptions_that_say_nothing_useful(change: dict[str, object], said: str, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "own.yaml"
    path.write_text(
        yaml.safe_dump(
            yaml.safe_load(OWN) | {k: list(v) if isinstance(v, tuple) else v for k, v in change.items()}
            if not isinstance(change.get("structures"), dict)
            else yaml.safe_load(OWN) | {"structures": {"liver": ["livr"]}}
        )
    )
    with pytest.raises(InvalidDescription, match=said):
        read_description(str(path))


def test_unknown_dataset_lists_the_known() -> None:
    with pytest.raises(UnknownDataset, match="No dataset 'livers'; known: abdomenct_12organ, abdomenct_1k, amos"):
        read_description("livers")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(NoCases, match="has no image that fits"):
        harmonize(tmp_path, read_description("lits"), tmp_path / "store", GRID)


@pytest.mark.parametrize("name", known_datasets())
def test_every_dataset_of_the_registry_is_described(name: str) -> None:
    description = read_description(name)
    assert description.name == name
    assert description.labelled_cases
    assert description.supervised_in("")
    assert "not stated" not in (description.licence, description.citation, description.source)


def test_label_order_is_told_by_volumes(tmp_path: Path) -> None:
    """The 12-organ dataset went round in two orders; the phantom is written in one of them."""
    phantom = small_phantom(2)
    description = read_description("abdomenct_12organ")
    for order, table in description.orders.items():
        values = np.zeros(phantom.hu.shape, np.uint8)
        for value, names in table.items():
            singles = [s for n in names for s in ({"kidneys": ["kidney_right", "kidney_left"]}.get(n, [n]))]
            values[mask_of(phantom.labels, *singles)] = value
        folder = tmp_path / order
        folder.mkdir()
        nibabel.save(nibabel.Nifti1Image(phantom.hu, phantom.affine), folder / "FLARE22_Tr_0001_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, phantom.affine), folder / "FLARE22_Tr_0001.nii.gz")
        store = tmp_path / f"store_{order}"
        (outcome,) = harmonize(folder, description, store, GRID, processes=1)
        assert outcome.status == "written"
        case = open_case(store, "abdomenct_12organ-FLARE22_Tr_0001")
        np.testing.assert_array_equal(has(case, "stomach"), mask_of(phantom.labels, "stomach"))
    with pytest.raises(AmbiguousLabelOrder, match="no label order 'alphabetic'; known: flare, reference"):
        harmonize(folder, description, store, GRID, order="alphabetic")


def test_names_in_dataset_json_that_contradict_ours_are_refused(tmp_path: Path) -> None:
    WRITERS["msd_spleen"](tmp_path, [2])
    (tmp_path / "Task09_Spleen" / "dataset.json").write_text('{"labels": {"1": "Stomach"}}')
    with pytest.raises(InvalidDescription, match=r"calls label 1 'Stomach', the description spleen \(not stomach\)"):
        harmonize(tmp_path, read_description("msd_spleen"), tmp_path / "store", GRID)


def test_fingerprint_knows_an_image_by_its_values() -> None:
    hu = np.random.default_rng(0).integers(-1024, 500, (9, 10, 11)).astype(np.int16)
    turned = np.ascontiguousarray(hu[::-1].transpose(2, 0, 1))
    other = hu.copy()
    other[0, 0, 0] = 77 if hu[0, 0, 0] != 77 else 78
    assert fingerprint(hu) == fingerprint(turned) == fingerprint(np.where(hu < -1000, -2000, hu).astype(np.int16))
    assert fingerprint(hu) != fingerprint(other)


def scan(dataset: str, case: str, fingerprint: str, patient: str, role: str = "train") -> ScanSource:
    return ScanSource(dataset, case, patient, fingerprint, role, {}, (1, 1, 1), (1.0, 1.0, 1.0))


def test_splits_hold_shared_images_and_patients_together() -> None:
    scans = {str(n): scan("a", str(n), f"image{n}", f"patient{n}") for n in range(2000)}
    alone = draw_splits(scans)
    shares = [list(alone.values()).count(split) / len(alone) for split in Split]
    assert shares == pytest.approx([0.75, 0.05, 0.2], abs=0.03)
    twins = {f"twin{n}": scan("b", str(n), f"image{n}", f"other{n}") for n in range(2000)}
    siblings = {f"sibling{n}": scan("b", f"s{n}", f"again{n}", f"patient{n}") for n in range(2000)}
    together = draw_splits(scans | twins | siblings)
    for n in range(2000):
        assert together[str(n)] is together[f"twin{n}"] is together[f"sibling{n}"]
        assert together[str(n)] >= alone[str(n)]  # never from test to training


def test_what_an_external_dataset_shares_is_never_trained_on() -> None:
    scans = {
        "mine": scan("a", "1", "image", "p1"),
        "theirs": scan("external", "1", "image", "p2", role="test"),
        "same patient": scan("a", "2", "another", "p1"),
    }
    assert set(draw_splits(scans).values()) == {Split.TEST}


def test_source_is_readable(store: Path) -> None:
    source = read_source(store, "lits-0")
    assert (source["dataset"], source["case"], source["patient"]) == ("lits", "0", "lits/0")
    assert bounding_box(open_case(store, "lits-0").hu > -300)[0].start >= 0


def test_description_of_cases_with_fewer_labels() -> None:
    btcv: DatasetDescription = read_description("btcv")
    assert "kidney_right" in btcv.supervised_in("0035")
    assert "kidney_right" not in btcv.supervised_in("0061")
    assert len(btcv.supervised_in("0061")) == 8
    amos = read_description("amos")
    assert amos.reason_to_exclude("amos_0507")
    assert amos.reason_to_exclude("amos_0500") is None


def test_a_dataset_to_train_on_only_draws_no_test_but_gives_in_to_one() -> None:
    mine = {str(n): scan("mine", str(n), f"image{n}", f"patient{n}", role="train_only") for n in range(50)}
    assert set(draw_splits(mine).values()) == {Split.TRAIN}
    theirs = {"theirs": scan("external", "1", "image7", "p", role="test")}
    assert [name for name, split in draw_splits(mine | theirs).items() if split is Split.TEST] == ["7", "theirs"]
