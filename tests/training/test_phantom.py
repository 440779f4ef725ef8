"""The phantom's patients: the same from one seed, anatomically sided, complete, and with known lesions."""

import numpy as np
import pytest

from training.labels import BY_NAME, LABELS
from training.phantom.anatomy import HEAVY_BURDEN_SEEDS, Raster, rasterize, sample_anatomy
from training.phantom.phantom import ABDOMEN, TRUNK, Phantom, draw_phantom, sample_settings, scan_grid
from training.phantom.render import render_hu
from training.phantom.seeds import stream
from training.phantom.tissues import Phase, Tissue, sample_tissue_hu

SEEDS = (1, 4, 5, 22, 24)


def raster(seed: int, spacing_mm: float = 4.0) -> Raster:
    anatomy = sample_anatomy(seed)
    return rasterize(anatomy, *scan_grid(anatomy, TRUNK, (spacing_mm,) * 3))


def mask(labels: np.ndarray, name: str) -> np.ndarray:
    return (labels >> np.uint32(BY_NAME[name].channel)) & 1 == 1


@pytest.fixture(scope="module")
def patients() -> dict[int, Raster]:
    return {seed: raster(seed) for seed in SEEDS}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return draw_phantom(1, spacing_mm=(4.0, 4.0, 4.0), field_of_view=ABDOMEN)


def test_same_seed_gives_identical_arrays(phantom: Phantom) -> None:
    again = draw_phantom(1, spacing_mm=(4.0, 4.0, 4.0), field_of_view=ABDOMEN)
    np.testing.assert_array_equal(phantom.hu, again.hu)
    np.testing.assert_array_equal(phantom.labels, again.labels)
    assert phantom.lesions == again.lesions


def test_other_seed_gives_another_patient(phantom: Phantom) -> None:
    other = draw_phantom(2, spacing_mm=(4.0, 4.0, 4.0), field_of_view=ABDOMEN)
    assert other.hu.shape != phantom.hu.shape or (other.labels != phantom.labels).any()


def test_a_crop_shows_the_same_patient() -> None:
    anatomy = sample_anatomy(1)
    shape, affine = scan_grid(anatomy, ABDOMEN, (4.0, 4.0, 4.0))
    whole = rasterize(anatomy, shape, affine)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ (10, 12, 8)
    part = rasterize(anatomy, (30, 20, 25), moved)
    here = np.s_[10:40, 12:32, 8:33]
    assert (part.labels == whole.labels[here]).mean() > 0.9999
    assert (part.tissue == whole.tissue[here]).mean() > 0.9999


def test_only_ras_grids_are_painted() -> None:
    with pytest.raises(ValueError, match="RAS"):
        rasterize(sample_anatomy(1), (4, 4, 4), np.diag([-2.0, 2.0, 2.0, 1.0]))


@pytest.mark.parametrize(("right", "left"), [
    ("liver", "spleen"), ("kidney_right", "kidney_left"), ("lung_right", "lung_left"),
    ("adrenal_gland_right", "adrenal_gland_left"), ("femur_head_right", "femur_head_left"),
    ("inferior_vena_cava", "aorta"), ("gallbladder", "stomach"),
])  # fmt: skip
def test_right_organs_lie_at_larger_x(patients: dict[int, Raster], right: str, left: str) -> None:
    for seed, patient in patients.items():
        sides = [np.nonzero(mask(patient.labels, name).any((1, 2)))[0] for name in (right, left)]
        if all(len(side) for side in sides):
            assert sides[0].mean() > sides[1].mean(), seed


def test_every_label_occurs(patients: dict[int, Raster]) -> None:
    seen = np.bitwise_or.reduce([np.bitwise_or.reduce(p.labels, axis=None) for p in patients.values()])
    missing = [label.name for label in LABELS if not seen >> np.uint32(label.channel) & 1]
    assert missing == []


@pytest.mark.parametrize(("name", "low", "high"), [
    ("liver", 700, 3500), ("spleen", 60, 600), ("kidney_left", 70, 350), ("lung_right", 900, 4500),
    ("pancreas", 20, 160), ("aorta", 80, 450), ("urinary_bladder", 30, 600), ("stomach", 80, 1200),
    ("colon", 200, 2400), ("small_intestine", 400, 2600), ("adrenal_gland_left", 0.6, 10), ("prostate", 10, 150),
    ("celiac_trunk", 0.1, 4), ("hepatic_vessel", 10, 90), ("femur_head_right", 25, 150),
])  # fmt: skip
def test_volumes_are_plausible(patients: dict[int, Raster], name: str, low: float, high: float) -> None:
    for seed, patient in patients.items():
        volume_ml = mask(patient.labels, name).sum() * 0.064
        assert low < volume_ml < high, (seed, volume_ml)


def test_lesions_lie_in_their_hosts_and_their_volumes_are_counted(patients: dict[int, Raster]) -> None:
    assert any(patient.lesions for patient in patients.values())
    for patient in patients.values():
        for lesion in patient.lesions:
            tumor = mask(patient.labels, lesion.label)
            assert not (tumor & ~mask(patient.labels, lesion.host)).any()
            assert lesion.host in BY_NAME[lesion.label].hosts
            assert lesion.volume_ml == pytest.approx(tumor.sum() * 0.064)
            center = np.linalg.inv(patient.affine) @ (*lesion.center_mm, 1.0)
            assert np.linalg.norm(np.argwhere(tumor).mean(0) - center[:3]) * 4 < lesion.diameter_mm / 2


def test_a_heavy_burden_is_many_lesions_each_counted_once() -> None:
    patient = raster(HEAVY_BURDEN_SEEDS.start)
    assert len(patient.lesions) > 5  # the most that any other patient has
    names = {lesion.label for lesion in patient.lesions}
    assert len(names) < len(patient.lesions)
    for name in names:
        volumes = [lesion.volume_ml for lesion in patient.lesions if lesion.label == name]
        assert sum(volumes) == pytest.approx(mask(patient.labels, name).sum() * 0.064)
    for lesion in patient.lesions:
        sphere_ml = np.pi / 6 * (lesion.diameter_mm / 10) ** 3
        assert lesion.volume_ml < 1.5 * sphere_ml


def test_hepatic_vessels_are_liver_and_exclude_their_tumor(patients: dict[int, Raster]) -> None:
    for patient in patients.values():
        vessel = mask(patient.labels, "hepatic_vessel")
        assert vessel.any()
        assert not (vessel & ~mask(patient.labels, "liver")).any()
        assert not (vessel & mask(patient.labels, "hepatic_vessel_tumor")).any()


def test_organs_do_not_overlap(patients: dict[int, Raster]) -> None:
    organs = [label for label in LABELS if label.kind == "organ" and label.name != "hepatic_vessel"]
    for patient in patients.values():
        assert sum(mask(patient.labels, organ.name).astype(int) for organ in organs).max() == 1


def test_finer_grids_agree_on_volume() -> None:
    anatomy = sample_anatomy(1)
    volumes = []
    for spacing in (3.0, 5.0):
        patient = rasterize(anatomy, *scan_grid(anatomy, ABDOMEN, (spacing,) * 3))
        volumes.append(mask(patient.labels, "liver").sum() * spacing**3)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)


def test_scan_settings_vary() -> None:
    settings = [sample_settings(seed) for seed in range(60)]
    assert {s.phase for s in settings} == set(Phase)
    thickness = {s.spacing_mm[2] for s in settings}
    assert min(thickness) < 1 < 5 <= max(thickness)
    assert any(s.kernel_mm <= 0 for s in settings)
    assert np.ptp([s.field_of_view.high_z - s.field_of_view.low_z for s in settings]) > 300


def test_noise_has_the_asked_strength_under_every_kernel() -> None:
    tissue = np.full((48, 48, 48), Tissue.MUSCLE, np.uint8)
    table = sample_tissue_hu(stream(0, "tissue"), Phase.NATIVE)
    for kernel_mm in (0.0, 0.6, 1.2):
        hu = render_hu(
            tissue,
            table,
            stream(0, "noise"),
            spacing_mm=(1.5, 1.5, 1.5),
            noise_hu=12,
            kernel_mm=kernel_mm,
            texture=False,
        )
        assert hu.std() == pytest.approx(12, rel=0.08)
        assert hu.mean() == pytest.approx(table[Tissue.MUSCLE], abs=1)


@pytest.mark.parametrize("phase", list(Phase))
def test_hu_follow_the_phase(phase: Phase) -> None:
    tables = [sample_tissue_hu(stream(seed, "tissue"), phase) for seed in range(40)]
    mean = np.mean(tables, axis=0)
    assert 0 <= mean[Tissue.KIDNEY_CYST] <= 15
    assert mean[Tissue.AORTA] > (200 if phase is Phase.ARTERIAL else 30)
    for table in tables:
        assert abs(table[Tissue.LIVER_TUMOR] - table[Tissue.LIVER]) >= 24
        assert abs(table[Tissue.HEPATIC_VESSEL_TUMOR] - table[Tissue.LIVER]) >= 25
        assert table[Tissue.PANCREAS] - table[Tissue.PANCREAS_TUMOR] >= 24
