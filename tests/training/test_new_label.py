"""A label beyond the 32: described, annotated in a store, learnt from a checkpoint, exported and found in a study."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from model_export.bundle import read_checkpoint, write_bundle
from model_export.errors import LabelRefused
from model_export.precisions import FP32
from service.cli import app as viscera_app
from service.reporting.schema import Findings
from tests.support.added_label import SPLEEN_TUMOR, UTERUS
from tests.support.nifti_files import write_nifti
from tests.support.training import TINY_CONFIG, bits, tiny_model, tiny_recipe, write_box_store
from training.assembly import Assembly, Split, open_assembly
from training.checkpoint import load_checkpoint, save_checkpoint
from training.datasets.description import InvalidDescription, read_description
from training.datasets.harmonize import ScanSource
from training.label_table import (
    STANDARD,
    LabelTable,
    OtherLabels,
    read_store_table,
    read_table,
    table_with,
    write_store_table,
)
from training.losses import masked_dice_bce
from training.networks.universal import UniversalModel
from training.new_label import InvalidLabel, NewLabel, read_label
from training.recipe import Recipe
from training.run_text import run_text
from training.samples import training_batches
from training.store import encode_case, open_case, write_case
from training.text import (
    TextEmbeddingError,
    TextProvenance,
    embedding_sha256,
    random_text_embedding,
    read_features,
    whiten,
    whiten_like,
    write_text_embedding,
)
from training.train import RunFolder, train
from training.warm_start import renew_heads, start_from_checkpoint

UTERUS_BIT = 1 << 32


@pytest.fixture
def table(tmp_path: Path) -> LabelTable:
    """The 32 and a uterus."""
    (tmp_path / "uterus.toml").write_text(UTERUS)
    return read_table([tmp_path / "uterus.toml"])


@pytest.fixture
def label(table: LabelTable) -> NewLabel:
    return table.own[0]


def scan_case(supervised: int) -> tuple[np.ndarray, np.ndarray]:
    """HU and label bits: a right kidney at 700 HU and a uterus at 300 in 0."""
    hu = np.zeros((40, 36, 44), np.int16)
    labels = np.zeros(hu.shape, np.uint64)
    kidney, uterus = np.s_[24:34, 10:26, 10:34], np.s_[6:16, 10:26, 10:34]
    hu[kidney], hu[uterus] = 700, 300
    labels[kidney], labels[uterus] = bits("kidney_right"), UTERUS_BIT
    return hu, labels & np.uint64(supervised)


def write_store(store: Path, table: LabelTable) -> Assembly:
    """Two scans: the uterus annotated in both, the right kidney in none but the second."""
    store.mkdir()
    scans = {}
    for number, supervised in enumerate((UTERUS_BIT, UTERUS_BIT | int(bits("kidney_right")))):
        hu, labels = scan_case(supervised)
        name = f"own-{number}"
        source = ScanSource("own", str(number), name, name, "train", {}, hu.shape, (2.0, 2.0, 2.0))
        case = encode_case(np.zeros(hu.shape, np.uint8), labels, np.random.default_rng(0), supervised=supervised, hu=hu)
        write_case(store, name, case, source=vars(source))
        scans[name] = source
    write_store_table(store, table)
    return Assembly(store, scans, dict.fromkeys(scans, Split.TRAIN), table)


@pytest.fixture
def store(tmp_path: Path, table: LabelTable, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("training.assembly._own_split", lambda source: Split.TRAIN)
    return write_store(tmp_path / "store", table).store


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A checkpoint of the 32 labels."""
    text = random_text_embedding(5)[1]
    save_checkpoint(
        tmp_path / "start.pt", tiny_model(5), label_names=STANDARD.names, text=text, training={"recipe": "first"}
    )
    return tmp_path / "start.pt"


# The table.


def test_own_labels_come_after_the_32(table: LabelTable, label: NewLabel) -> None:
    assert table.names == (*STANDARD.names, "uterus")
    assert table.by_name["uterus"].channel == 32
    assert (STANDARD.bit_type, table.bit_type) == (np.uint32, np.uint64)
    assert table.bits(["spleen", "uterus"]) == UTERUS_BIT | 1
    assert table.organs[-1].name == "uterus"
    with pytest.raises(InvalidLabel, match="There is a label 'uterus' already"):
        LabelTable((label, label))
    for name in ("liver", "kidneys"):  # `kidneys` is both of them in a dataset's description
        with pytest.raises(InvalidLabel, match=f"There is a label '{name}' already"):
            LabelTable((label.model_copy(update={"name": name}),))
    with pytest.raises(InvalidLabel, match="has the index 6 of 'uterus'"):
        LabelTable((label.model_copy(update={"index": 6}),))
    many = tuple(label.model_copy(update={"name": f"part_{n}"}) for n in range(33))
    assert len(LabelTable(many[:32]).labels) == 64
    with pytest.raises(InvalidLabel, match="65 labels; a voxel has bits for 64"):
        LabelTable(many)


def test_a_lesion_lies_in_an_organ_of_the_table(label: NewLabel, tmp_path: Path) -> None:
    (tmp_path / "tumor.toml").write_text(SPLEEN_TUMOR.replace('"stomach"', '"uterus"'))
    tumor = read_label(tmp_path / "tumor.toml")
    assert LabelTable((label, tumor)).lesions[-1].hosts == ("spleen", "uterus")
    with pytest.raises(InvalidLabel, match="The host 'uterus' of 'spleen_tumor' is not an organ"):
        LabelTable((tumor,))


def test_a_store_says_which_labels_its_bits_mean(table: LabelTable, label: NewLabel, tmp_path: Path) -> None:
    assert read_store_table(tmp_path) is None
    write_store_table(tmp_path, table)
    assert read_store_table(tmp_path) == table
    # A label keeps its bit when others join, and another description of it counts from then on.
    cervix = label.model_copy(update={"name": "cervix"})
    red = label.model_copy(update={"color": (255, 0, 0)})
    assert table_with(tmp_path, LabelTable((cervix, red))).own == (red, cervix)
    assert table_with(tmp_path, STANDARD) == table
    content = json.loads((tmp_path / "labels.json").read_text())
    content["names"][:2] = reversed(content["names"][:2])
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(OtherLabels, match="was made with another label table; harmonize its datasets into a new store"):
        read_store_table(tmp_path)


def test_a_store_that_does_not_say_is_refused(store: Path) -> None:
    (store / "labels.json").unlink()
    with pytest.raises(OtherLabels, match="does not say which labels its bits mean; harmonize its datasets again"):
        open_assembly(store)


def test_a_dataset_may_name_an_own_label(table: LabelTable, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        'name: own\ntitle: Own\nimage: "{case}.nii.gz"\nlabel: "{case}_seg.nii.gz"\nvalues: {1: [uterus], 2: [liver]}\n'
    )
    assert read_description(str(path), table).supervised_in("", table) == ("liver", "uterus")
    with pytest.raises(InvalidDescription, match=r"names unknown labels uterus; known: .* needs --label"):
        read_description(str(path))


# Its text and its head.


def test_the_rows_of_a_checkpoint_stay_and_new_ones_join(table: LabelTable, start: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(seed=77)
    old = load_checkpoint(start).model.text_embedding
    text = run_text(recipe, table, features=None, start_from=start)
    assert torch.equal(text.embedding[:32], old)
    assert text.drawn == ("uterus",)
    assert text.provenance.source.endswith("drawn at random: uterus")
    assert text.provenance.sha256 == embedding_sha256(text.embedding)
    assert text.embedding[32].norm() == pytest.approx(float(old.norm(dim=1).mean()), rel=1e-5)
    assert torch.equal(run_text(recipe, table, features=None, start_from=start).embedding, text.embedding)
    other = tmp_path / "other.pt"
    names = (*STANDARD.names[:31], "cyst")
    save_checkpoint(other, tiny_model(5), label_names=names, text=random_text_embedding(5)[1], training={})
    with pytest.raises(OtherLabels, match=r"other\.pt has the label 'cyst' where the store has another"):
        run_text(recipe, table, features=None, start_from=other)


def test_own_rows_are_whitened_by_the_map_of_the_32(table: LabelTable, tmp_path: Path) -> None:
    rows = torch.randn(33, 512, generator=torch.Generator().manual_seed(4))
    names = tuple(label.prompt for label in table.labels)
    features = tmp_path / "text.safetensors"
    write_text_embedding(features, rows, TextProvenance("CLIP", "A {}", "a test", "", names=names))
    recipe = tiny_recipe(whiten_text=True)
    text = run_text(recipe, table, features=features, start_from=None)
    expected = whiten(rows[:32], read_features(features)[1])[0]
    assert torch.equal(text.embedding[:32], expected)
    torch.testing.assert_close(text.embedding[32:], whiten_like(rows[32:], rows[:32]))
    assert (text.drawn, text.provenance.names[-1]) == ((), "Uterus")
    # The same rows without the label: those of the 32 did not move.
    assert torch.equal(run_text(recipe, STANDARD, features=features, start_from=None).embedding, expected)


def test_features_must_be_those_of_the_checkpoint(table: LabelTable, start: Path, tmp_path: Path) -> None:
    rows = torch.cat([random_text_embedding(5)[0], torch.ones(1, 512)])
    names = tuple(label.prompt for label in table.labels)
    provenance = TextProvenance("CLIP", "A {}", "a test", "", names=names)
    write_text_embedding(tmp_path / "text.safetensors", rows, provenance)
    text = run_text(tiny_recipe(), table, features=tmp_path / "text.safetensors", start_from=start)
    assert torch.equal(text.embedding[32], rows[32])
    write_text_embedding(tmp_path / "text.safetensors", rows + 0.1, provenance)
    with pytest.raises(TextEmbeddingError, match="has other features of 'spleen'"):
        run_text(tiny_recipe(), table, features=tmp_path / "text.safetensors", start_from=start)


@torch.no_grad()
def test_a_new_head_leaves_the_logits_of_the_old_labels(table: LabelTable, start: Path) -> None:
    source = tiny_model(5)
    text = run_text(tiny_recipe(), table, features=None, start_from=start)
    model = UniversalModel(TINY_CONFIG, text.embedding).eval()
    window = torch.rand(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert start_from_checkpoint(model, start) == [32]
    assert torch.equal(model.text_rows()[:32], source.text_rows())
    from_text = model(window)
    torch.testing.assert_close(from_text[:, :32], source(window), atol=1e-6, rtol=1e-6)
    renew_heads(model, [32], window)
    after = model(window)
    torch.testing.assert_close(after[:, :32], source(window), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after[:, 32], from_text[:, 32], atol=0.1)
    assert model.head_params(model.backbone_outputs(window)[1])[:, 32, -1].mean() == pytest.approx(-3.0, abs=1e-3)


# Its training.


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe(scans=0.5, validation_samples=0, steps=2, deep_supervision=1.0)


def test_phantoms_do_not_supervise_a_new_label(recipe: Recipe, store: Path, tmp_path: Path) -> None:
    write_box_store(tmp_path / "phantoms", recipe)
    longer = recipe.model_copy(update={"steps": 8})
    assembly = open_assembly(store)
    batches = list(training_batches(tmp_path / "phantoms", longer, 0, torch.device("cpu"), scans=assembly))
    supervised = torch.cat([batch[2] for batch in batches])
    assert supervised.shape == (16, 33)
    of_phantoms = supervised[:, :32].all(dim=1)
    assert 0 < of_phantoms.sum() < 16
    assert not supervised[of_phantoms, 32].any()
    assert supervised[~of_phantoms, 32].all()
    assert supervised[~of_phantoms, :32].sum(dim=1).unique().tolist() in ([0], [1], [0, 1])  # the kidney or nothing
    occupancy = torch.cat([batch[1] for batch in batches])
    assert occupancy.shape[1] == 33
    assert occupancy[~of_phantoms, 32].any()

    logits = torch.zeros(16, 33, *occupancy.shape[2:], requires_grad=True)
    masked_dice_bce(logits, occupancy.float() / 8, supervised).total.backward()
    assert logits.grad is not None
    gradient = logits.grad.abs().sum(dim=(2, 3, 4))
    assert (gradient[~supervised] == 0).all()
    assert (gradient[supervised] > 0).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_checkpoint_learns_a_label_and_a_bundle_finds_it(
    frozen: bool, recipe: Recipe, store: Path, start: Path, table: LabelTable, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe = recipe.model_copy(update={"freeze_backbone": frozen})
    run = RunFolder(tmp_path / "run")
    write_box_store(run.store, recipe)
    text = run_text(recipe, table, features=None, start_from=start)
    path = train(recipe, text.embedding, text.provenance, run, start_from=start, scans=store)
    trained = load_checkpoint(path)
    assert trained.label_names == table.names
    assert trained.own_labels == table.own
    before, after = tiny_model(5).state_dict(), trained.model.state_dict()
    kept = [torch.equal(before[name], after[name]) for name in before if name.startswith("backbone.")]
    assert all(kept) == frozen
    assert not torch.equal(before["controller.weight"], after["controller.weight"])
    if frozen:
        return

    bundle = write_bundle(read_checkpoint(path), tmp_path / "out", name="own", version="1.0.0", precisions=(FP32,))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (entry,) = manifest["labels"][32:]
    assert (entry["name"], entry["index"], entry["threshold"]) == ("uterus", 33, 0.5)
    assert entry["type"] == {"scheme": "SCT", "value": "35039007", "meaning": "Uterus"}
    assert "| 33 | `uterus` | organ |" in (bundle / "MODEL_CARD.md").read_text()
    monkeypatch.setenv("VISCERA_DATA_DIR", str(tmp_path / "data"))
    study = write_nifti(tmp_path / "ct.nii.gz")
    options = ["--bundle", str(bundle), "--engine", "onnxruntime", "--out", str(tmp_path / "result")]
    result = CliRunner().invoke(viscera_app, ["segment", str(study), *options])
    assert result.exit_code == 0, result.output
    findings = Findings.model_validate_json((tmp_path / "result" / "findings.json").read_text())
    assert findings.organs[-1].label == "uterus"
    assert (tmp_path / "result" / "masks" / "uterus.nii.gz").is_file()


def test_a_run_that_was_begun_with_fewer_labels_does_not_go_on(
    recipe: Recipe, store: Path, table: LabelTable, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    write_box_store(run.store, recipe)
    train(recipe.model_copy(update={"scans": 0.0}), *random_text_embedding(0), run)
    text = run_text(recipe, table, features=None, start_from=run.final)
    with pytest.raises(OtherLabels, match="was begun with 32 labels, now there are 33; start another run"):
        train(recipe, text.embedding, text.provenance, run, scans=store)
    with pytest.raises(OtherLabels, match="Text features of 32 labels for a store of 33"):
        train(recipe, *random_text_embedding(0), RunFolder(tmp_path / "other"), scans=store)


def test_rules_that_the_manifest_does_not_know_stop_the_export(start: Path, label: NewLabel, tmp_path: Path) -> None:
    odd = label.model_copy(
        update={"postprocessing": label.postprocessing.model_copy(update={"viscera": ({"rule": "magic"},)})}
    )
    embedding = torch.cat([random_text_embedding(5)[0], torch.ones(1, 512)])
    model = UniversalModel(TINY_CONFIG, embedding)
    text = TextProvenance("random", "{}", "a test", embedding_sha256(embedding))
    path = tmp_path / "odd.pt"
    table = LabelTable((odd,))
    save_checkpoint(path, model, label_names=table.names, own_labels=table.own, text=text, training={"data": "none"})
    with pytest.raises(LabelRefused, match="there is no rule 'magic'"):
        write_bundle(read_checkpoint(path), tmp_path / "out", name="own", version="1.0.0")
    assert not (tmp_path / "out").exists()


def test_codes_of_64_labels_survive_their_files(tmp_path: Path) -> None:
    labels = np.zeros((3, 2, 2), np.uint64)
    labels[0], labels[1] = 1 << 63 | 1, 1 << 32
    hu = np.zeros(labels.shape, np.int16)
    supervised = 1 << 63 | 1 << 32
    case = encode_case(np.zeros(labels.shape, np.uint8), labels, np.random.default_rng(0), supervised=supervised, hu=hu)
    write_case(tmp_path, "own-1", case, source={})
    again = open_case(tmp_path, "own-1")
    np.testing.assert_array_equal(again.labels[again.codes], labels)
    assert again.supervised == supervised
    assert sorted(set(again.center_channel.tolist())) == [0, 32, 63]
