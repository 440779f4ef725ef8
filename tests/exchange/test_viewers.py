"""The commands of docs/viewers.md between a service, its SCP and Orthanc, all as processes of their own."""

import os
import re
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.cli.local_key import read_local_key
from tests.support.documents import DOCS, ROOT, fenced, section, text_of
from tests.support.orthanc import PASSWORD, Orthanc, free_port, running_orthanc
from tests.support.service_process import START_SECONDS, running_service
from tests.support.shell import run_script
from training.phantom.phantom import FieldOfView, draw_phantom
from training.phantom.write import write_dicom

CHAPTER = section(text_of(DOCS / "viewers.md"), "Orthanc")
SCP_HOST = "127.0.0.1"


@contextmanager
def running_scp(data_dir: Path, **settings: str) -> Iterator[None]:
    """`viscera scp` beside the service of that folder; it ends with the block."""
    environment = {**os.environ, **settings, "VISCERA_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-u", "-m", "service.cli", "scp"]
    with (data_dir / "scp.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        assert ready
        assert "takes CT" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


def documented_settings(orthanc: Orthanc) -> dict[str, str]:
    """The lines for docker/viscera.env, with this Orthanc in them."""
    [lines] = fenced(CHAPTER, "env")
    filled = lines.replace("orthanc:8042", orthanc.host).replace("ORTHANC_PASSWORD", PASSWORD)
    return dict(line.split("=", 1) for line in filled.splitlines())


def write_study(folder: Path) -> int:
    """study.zip in that folder, from a low phantom; returns how many slices it has."""
    phantom = draw_phantom(41, spacing_mm=(4.0, 4.0, 5.0), field_of_view=FieldOfView(-20.0, 60.0))
    slices = write_dicom(phantom, folder / "slices")
    shutil.make_archive(str(folder / "study"), "zip", folder / "slices")
    return len(slices)


def test_a_study_goes_from_orthanc_to_the_service_and_back_both_ways(tmp_path: Path) -> None:
    slices, scp_port = write_study(tmp_path), free_port()
    modalities = {"viscera": ["VISCERA", SCP_HOST, scp_port]}
    with running_orthanc(tmp_path / "orthanc", modalities=modalities) as orthanc:
        settings = {
            **documented_settings(orthanc),
            "VISCERA_SCP_CALLERS": '["ORTHANC"]',
            "VISCERA_SCP_HOST": SCP_HOST,
            "VISCERA_SCP_PORT": str(scp_port),
            "VISCERA_STUDY_QUIET_SECONDS": "1",
            "VISCERA_SWEEP_SECONDS": "0.2",
        }
        data_dir = tmp_path / "data"
        with running_service(data_dir, **settings) as (viscera, _), running_scp(data_dir, **settings):
            script = "\n".join(fenced(CHAPTER, "sh"))
            for written, here in {
                "http://127.0.0.1:8042": f"http://{orthanc.host}",
                "http://orthanc:8042": f"http://{orthanc.host}",
                "http://127.0.0.1:8000": viscera.url,
            }.items():
                assert written in script
                script = script.replace(written, here)
            key = read_local_key(data_dir)
            assert key is not None
            printed = run_script(script, tmp_path, ORTHANC_PASSWORD=PASSWORD, VISCERA_API_KEY=key)

            by_store = re.findall(r"^([A-Z]+)\t", printed, re.MULTILINE)
            assert sorted(set(by_store)) == ["CT", "SEG", "SR"]
            assert '"status": "succeeded"' in printed
            by_reference, by_scp = viscera.jobs()["jobs"]
            assert [job["status"] for job in (by_reference, by_scp)] == ["succeeded"] * 2
            assert (by_scp["upload_files"], by_reference["upload_files"]) == (slices, 0)
            assert not [one for job in (by_reference, by_scp) for one in job["warnings"] if "push" in one["code"]]
        there = Counter(
            one["MainDicomTags"]["Modality"] for one in orthanc.http.get("/series", params={"expand": ""}).json()
        )
        series = Counter(by_store)
        assert there == {"CT": 1, "SEG": 2 * series["SEG"], "SR": 2, "RTSTRUCT": 1}
