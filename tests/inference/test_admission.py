"""What a scan needs of memory is told from its header, and one that needs more than there is fails unread."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest

from service import admission, pipeline
from service.admission import admit, available_bytes, predicted_bytes
from service.errors import InsufficientMemory
from service.imaging.dicom_source import DicomSource
from service.imaging.geometry import Geometry
from service.inference.bundle import Bundle
from service.inference.model import Model
from service.neighbours import NoNeighbours
from service.pipeline import segment_study
from service.progress import Progress, Stage
from service.reporting.outputs import OutputPlan
from service.request import Output, SegmentationRequest, SegType

MIB = 1024**2
# 200 x 160 x 100 voxels of 1 x 1 x 4 mm, i towards the left, j towards the feet, k towards the front: the model grid of
# 2 mm has round(199 / 2) + 1 = 100 or 101 voxels along x, round(99 * 4 / 2) + 1 = 199 along y and 81 along z.
SCAN = Geometry((200, 160, 100), np.array([[-1.0, 0, 0, 0], [0, 0, 4, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))


def test_the_largest_stage_counts(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    x, y, z = 101, 199, 81
    voxels, model_grid = 200 * 160 * 100, x * y * z
    # The source's slices k lie along y, and its rows j along z. 16 rows of y are made of 9 slices and a few more.
    preprocessing = 4 * model_grid + max(4 * 200 * (160 * (13 + 16) + z * 16), 4 * model_grid)
    kept = 0.125 * 3 * 4 * model_grid / 8
    inference = 4 * model_grid + 4 * (3 + 4) * 51 * 100 * 16 + 4 * 3 * 16**3 + kept
    bits = 0.125 * 3 * voxels / 8
    postprocessing = bits + kept + 7 * model_grid
    most = max(preprocessing, inference, postprocessing, bits + 3 * voxels)
    assert predicted_bytes(SCAN, manifest, 3) == pytest.approx(200 * MIB + 2 * voxels + most, rel=0.01)
    assert predicted_bytes(SCAN, manifest, 3, lean=True) == pytest.approx(200 * MIB + max(2 * voxels, most), rel=0.01)


def test_writing_counts_and_less_of_it_one_file_after_another(tiny_bundle: Bundle) -> None:
    source = DicomSource.__new__(DicomSource)  # that there is one is all that counts

    def needed(*wanted: Output, lean: bool = False, seg_type: SegType = SegType.LABELMAP) -> int:
        plan = OutputPlan(frozenset(wanted), source, seg_type)
        return predicted_bytes(FLAT, tiny_bundle.manifest, 3, plan, lean=lean)

    voxels = 512 * 512 * 80
    labelmap, both = needed(Output.SEG), needed(Output.SEG, Output.RTSTRUCT)
    assert both - labelmap == voxels // 2
    assert needed(Output.SEG, seg_type=SegType.BINARY) < labelmap
    assert both - needed(Output.SEG, Output.RTSTRUCT, lean=True) == voxels // 2 + 2 * voxels


def test_a_scan_that_does_not_fit_runs_in_the_leaner_way_or_is_refused(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tiny_bundle.manifest
    as_asked, lean = predicted_bytes(SCAN, manifest, 3), predicted_bytes(SCAN, manifest, 3, lean=True)
    for free, expected in ((as_asked, False), (None, False), (as_asked - 1, True), (lean, True)):
        monkeypatch.setattr(admission, "available_bytes", lambda free=free: free)
        assert admit(SCAN, manifest, 3) is expected
    monkeypatch.setattr(admission, "available_bytes", lambda: lean // 2)
    with pytest.raises(
        InsufficientMemory, match=r"200 x 160 x 100 voxels, 3 labels\) needs about 0\.2 GB.* 0\.1 GB free"
    ):
        admit(SCAN, manifest, 3)


def write_block(path: Path) -> Geometry:
    """A NIfTI of soft tissue in air."""
    hu, affine = np.full((40, 44, 48), -1000, np.int16), np.diag([2.0, 2.0, 2.0, 1.0])
    hu[8:32, 8:36, 6:40] = np.random.default_rng(0).normal(60, 20, (24, 28, 34))
    nibabel.save(nibabel.Nifti1Image(hu, affine), path)
    return Geometry(hu.shape, affine)


def test_the_leaner_way_gives_the_same_result_and_says_so(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    needed = predicted_bytes(write_block(tmp_path / "ct.nii"), tiny_model.bundle.manifest, 4)
    for name, free in (("asked", needed), ("lean", needed - 1)):
        out = tmp_path / name
        out.mkdir()
        monkeypatch.setattr(admission, "available_bytes", lambda free=free: free)
        found.append(segment_study(tmp_path / "ct.nii", out, tiny_model, SegmentationRequest()))
    asked, lean = found
    assert [warning.code for warning in lean.warnings if warning not in asked.warnings] == ["memory-low"]
    assert lean.provenance.mask_sha256 == asked.provenance.mask_sha256
    assert (lean.organs, lean.lesions, lean.quality) == (asked.organs, asked.lesions, asked.quality)
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("asked", "lean")
    ]
    assert files[0] == files[1]


def test_only_the_network_runs_in_the_turn_and_what_is_promised_is_what_was_predicted(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other stages run while a neighbour has the network."""

    class Recorded(NoNeighbours):
        def __init__(self) -> None:
            self.in_turn = False
            self.promises: list[int] = []

        @contextmanager
        def network(self, progress: Progress) -> Iterator[None]:
            progress(Stage.WAITING, 0.0)
            self.in_turn = True
            yield
            self.in_turn = False

        def promise(self, amount: int) -> None:
            self.promises.append(amount)

    neighbours = Recorded()
    stages: dict[bool, set[Stage]] = {True: set(), False: set()}

    def watch(stage: Stage, _: float) -> None:
        stages[neighbours.in_turn].add(stage)

    geometry = write_block(tmp_path / "ct.nii")
    monkeypatch.setattr(admission, "available_bytes", lambda: 1000 * MIB)
    out = tmp_path / "out"
    out.mkdir()
    segment_study(tmp_path / "ct.nii", out, tiny_model, SegmentationRequest(), watch, neighbours=neighbours)
    assert stages[True] == {Stage.INFERENCE}
    assert stages[False] == {*Stage} - {Stage.INFERENCE, Stage.FETCHING, Stage.SENDING}
    assert neighbours.promises == [predicted_bytes(geometry, tiny_model.bundle.manifest, 4)]


def test_it_is_refused_before_a_voxel_is_read(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((30, 30, 30), np.int16), np.eye(4)), tmp_path / "ct.nii")
    monkeypatch.setattr(admission, "available_bytes", lambda: MIB)
    monkeypatch.setattr(pipeline, "read_volume", None)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InsufficientMemory):
        segment_study(tmp_path / "ct.nii", out, tiny_model, SegmentationRequest())
    assert not list(out.iterdir())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """3000 KiB available, and a control group of 2,000,000 bytes, 1,500,000 used, 200,000 of them files."""
    monkeypatch.setattr(admission, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(admission, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    3000 kB\n")
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 1300000\nfile 200000\ninactive_file 200000\n")
    return tmp_path


def test_what_is_free_is_the_least_of_machine_and_container(machine: Path) -> None:
    assert available_bytes() == 700_000
    (machine / "memory.max").write_text("900000000\n")
    assert available_bytes() == 3000 * 1024
    (machine / "memory.max").write_text("1000\n")
    assert available_bytes() == 0


def test_a_group_without_limit_and_a_machine_that_does_not_tell(machine: Path) -> None:
    (machine / "memory.max").write_text("max\n")
    assert available_bytes() == 3000 * 1024
    (machine / "memory.stat").unlink()
    (machine / "meminfo").write_text("MemTotal:  9000 kB\n")
    assert available_bytes() is None
    (machine / "meminfo").unlink()
    assert available_bytes() is None


FLAT = Geometry((512, 512, 80), np.diag([0.8, 0.8, 5.0, 1.0]))

MEASURED = """
import json, sys
from pathlib import Path
from service.admission import predicted_bytes
from service.imaging.geometry import Geometry
from service.inference.model import load_bundle
from service.pipeline import segment_study
from service.request import SegmentationRequest
import nibabel

def kib(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

model = load_bundle(sys.argv[1], threads=1)
image = nibabel.load(sys.argv[2])
manifest = model.bundle.manifest
predicted = predicted_bytes(Geometry(image.shape, image.affine), manifest, len(manifest.labels))
before = kib("VmRSS")
segment_study(Path(sys.argv[2]), Path(sys.argv[3]), model, SegmentationRequest(overlap=0.0))
print(json.dumps([predicted, (kib("VmHWM") - before) * 1024]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, which Linux has")
def test_a_job_stays_below_what_was_predicted(tiny_path: Path, tmp_path: Path) -> None:
    """In a process of its own: a peak is that of a whole process."""
    hu = np.full((400, 400, 260), -1000, np.int16)
    hu[40:360, 60:340, 20:240] = 60
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([0.9, 0.9, 1.2, 1.0])), tmp_path / "ct.nii")
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", MEASURED, *map(str, (tiny_path, tmp_path / "ct.nii", tmp_path / "out"))]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    predicted, measured = json.loads(ended.stdout.splitlines()[-1])
    assert measured <= predicted
    assert measured >= (predicted - 200 * MIB) / 2  # and the prediction is no mere dread
    assert (tmp_path / "out" / "findings.json").exists()
