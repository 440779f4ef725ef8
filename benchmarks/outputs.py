"""Seconds and memory for reading a DICOM series and writing every output of it, with masks that are made up.

    python -m benchmarks.outputs [--shape 512 512 400] [--lesions 12] [--seg-type labelmap]

25 organs of a tenth to a few percent of the trunk each, with rough surfaces and some overlap, and tumours inside them:
as many voxels and outlines as a whole trunk has. Each kind of output is also timed alone.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from service.imaging.geometry import Geometry
from service.imaging.study import Series, read_study, read_volume, select_ct_series
from service.imaging.volume import Volume
from service.inference.bundle import default_bundle_path, open_bundle
from service.inference.grid import full_box
from service.inference.manifest import Label
from service.inference.masks import LabelMask, Masks
from service.reporting.artifacts import write_artifacts
from service.reporting.findings import measure
from service.reporting.outputs import plan_outputs
from service.reporting.schema import BundleReference, Findings, Provenance
from service.request import Output, SegmentationRequest, SegType

Answer = TypeVar("Answer")


def main() -> None:
    """One line per step."""
    parser = argparse.ArgumentParser(description="Seconds for reading and writing.")
    parser.add_argument("--shape", nargs=3, type=int, default=(512, 512, 400))
    parser.add_argument("--lesions", type=int, default=12, help="of each of the lesion labels")
    parser.add_argument("--seg-type", type=SegType, default=SegType.BINARY)
    arguments = parser.parse_args()
    labels = open_bundle(default_bundle_path()).manifest.labels
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_series(folder / "in", tuple(arguments.shape))
        series, volume = _timed("read", lambda: _read(folder))
        masks = _masks(labels, volume.geometry, arguments.lesions)
        findings = _timed("measure", lambda: measure(volume, masks, _provenance()))
        print(f"{len(findings.lesions)} lesions, {sum(organ.present for organ in findings.organs)} organs")
        _timed("all outputs", lambda: _write(folder, series, volume, masks, findings, tuple(Output), arguments))
        for output in Output:
            _timed(
                output.value, lambda only=output: _write(folder, series, volume, masks, findings, (only,), arguments)
            )
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _timed(what: str, work: Callable[[], Answer]) -> Answer:
    start = time.perf_counter()
    answer = work()
    print(f"{what:12s} {time.perf_counter() - start:6.1f} s", flush=True)
    return answer


def _read(folder: Path) -> tuple[Series, Volume]:
    series = select_ct_series(read_study(folder / "in", folder))
    return series, read_volume(series)


def _write(
    folder: Path,
    series: Series,
    volume: Volume,
    masks: Masks,
    findings: Findings,
    outputs: tuple[Output, ...],
    arguments: argparse.Namespace,
) -> None:
    request = SegmentationRequest(outputs=outputs, seg_type=arguments.seg_type)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        written = write_artifacts(Path(out), volume, masks, findings, plan_outputs(request, series))
        if len(outputs) > 1:
            for artifact in written:
                if artifact.media_type == "application/dicom":
                    print(f"    {artifact.name} {artifact.bytes / 1e6:.2f} MB")


def _masks(labels: tuple[Label, ...], geometry: Geometry, lesions: int) -> Masks:
    rng = np.random.default_rng(5)
    of_labels: list[LabelMask] = []
    for label in labels:
        mask = LabelMask(full_box(geometry.shape))
        for _ in range(lesions if label.kind.is_lesion else 1):
            size = rng.uniform(0.008, 0.03) if label.kind.is_lesion else rng.uniform(0.05, 0.16)
            _add_blob(mask, geometry.shape, rng.uniform(0.25, 0.75, 3), size * rng.uniform(0.7, 1.3, 3), rng)
        of_labels.append(mask)
    return Masks(labels, tuple(of_labels), geometry, {})


def _add_blob(
    mask: LabelMask,
    shape: tuple[int, int, int],
    centre: NDArray[np.float64],
    radii: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """An ellipsoid with bumps; centre and radii as fractions of the scan."""
    box = tuple(
        slice(max(0, int(n * (c - 1.3 * r))), min(n, int(n * (c + 1.3 * r)) + 2))
        for n, c, r in zip(shape, centre, radii, strict=True)
    )
    grid = np.ogrid[box]
    distance = sum(((x / n - c) / r) ** 2 for x, n, c, r in zip(grid, shape, centre, radii, strict=True))
    coarse = rng.normal(0, 0.35, [max(2, (cut.stop - cut.start) // 8) for cut in box])
    zoom = [(cut.stop - cut.start) / n for cut, n in zip(box, coarse.shape, strict=True)]
    bumps = ndimage.zoom(coarse, zoom, order=1)
    mask.add(box, distance + bumps[tuple(slice(0, n) for n in distance.shape)] < 1)


def _provenance() -> Provenance:
    return Provenance(
        bundle=BundleReference(name="benchmark", version="1.0.0", sha256="a" * 64),
        software_version="0",
        engine="none",
        precision="fp32",
        settings={},
        input_sha256="b" * 64,
        mask_sha256="c" * 64,
    )


def _write_series(folder: Path, shape: tuple[int, int, int]) -> None:
    """An uncompressed series of noise around water."""
    folder.mkdir()
    columns, rows, slices = shape
    rng = np.random.default_rng(3)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(slices):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.PatientID, image.PatientName = "CT", "BENCHMARK", "Benchmark"
        image.Rows, image.Columns = rows, columns
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.PixelSpacing, image.SliceThickness = [0.8, 0.8], 1
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-200, -200, k]
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        pixels = rng.integers(-1000, 400, (rows, columns), dtype=np.int16)
        image.PixelData = pixels.tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.save_as(folder / f"{k:04d}", enforce_file_format=True)


if __name__ == "__main__":
    main()
