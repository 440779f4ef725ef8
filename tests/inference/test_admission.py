"""What a scan needs of memory is told from its header, and one that needs more than there is fails unread."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from service import admission, pipeline
from service.admission import admit, available_bytes, predicted_bytes
from service.errors import InsufficientMemory
from service.imaging.geometry import Geometry
from service.inference.bundle import Bundle
from service.inference.model import Model
from service.pipeline import segment_study
from service.request import SegmentationRequest

MIB = 1024**2
# 200 x 160 x 100 voxels of 1 x 1 x 4 mm, i towards the left, j towards the feet, k towards the front: the model grid of
# 2 mm has round(199 / 2) + 1 = 100 or 101 voxels along x, round(99 * 4 / 2) + 1 = 199 along y and 81 along z.
SCAN = Geometry((200, 160, 100), np.array([[-1.0, 0, 0, 0], [0, 0, 4, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))


def test_the_largest_stage_counts(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    x, y, z = 101, 199, 81
    source, model_grid = 200 * 160 * 100, 4 * x * y * z
    # Source axes in the order x, y, z: 200, 100, 160.
    preprocessing = 4 * x * y * 160 + max(4 * x * 100 * 160, model_grid)
    kept = round(0.125 * 3 * model_grid / 8)
    inference = model_grid + 4 * (3 + 1) * 51 * 100 * 16 + kept
    postprocessing = 4 * source + kept + 3 * model_grid
    assert max(preprocessing, inference, postprocessing) == postprocessing
    assert predicted_bytes(SCAN, manifest, 3) == pytest.approx(200 * MIB + 2 * source + postprocessing, rel=0.01)
    assert predicted_bytes(SCAN, manifest, 33) - predicted_bytes(SCAN, manifest, 32) > 4 * source  # 64 bits a voxel


def test_a_scan_that_does_not_fit_is_refused_with_both_numbers(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = predicted_bytes(SCAN, tiny_bundle.manifest, 3)
    monkeypatch.setattr(admission, "available_bytes", lambda: needed)
    admit(SCAN, tiny_bundle.manifest, 3)
    monkeypatch.setattr(admission, "available_bytes", lambda: None)
    admit(SCAN, tiny_bundle.manifest, 3)
    monkeypatch.setattr(admission, "available_bytes", lambda: needed // 2)
    with pytest.raises(
        InsufficientMemory, match=r"200 x 160 x 100 voxels, 3 labels\) needs about 0\.2 GB.* 0\.1 GB free"
    ):
        admit(SCAN, tiny_bundle.manifest, 3)


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
