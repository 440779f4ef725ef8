"""Seconds to read a DICOM series, from the folder to HU: uncompressed, and lossless JPEG, which GDCM decodes.

    python -m benchmarks.reading [--slices N]

The series is a noisy phantom of 512 x 512 pixels; noise compresses as badly as that of a scanner. Files are written
first, so they are read from the cache of the disk. Peak memory is this process's RSS.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from pydicom.uid import JPEGLosslessSV1

from service.imaging.study import read_study, read_volume, select_ct_series
from tests.support.dicom_series import body_hu, write_ct_series
from tests.support.jpeg_lossless import recompress


def main() -> None:
    """One line per transfer syntax."""
    parser = argparse.ArgumentParser(description="Seconds to read a DICOM series.")
    parser.add_argument("--slices", type=int, default=400)
    slices = parser.parse_args().slices
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hu = np.concatenate([body_hu((512, 512, 20), seed) for seed in range(-(-slices // 20))], axis=2)[..., :slices]
        paths = write_ct_series(folder / "series", hu, PixelRepresentation=0)
        _report("uncompressed", folder)
        for path in paths:
            recompress(path, JPEGLosslessSV1)
        _report("JPEG lossless", folder)


def _report(name: str, folder: Path) -> None:
    begin = time.perf_counter()
    study = read_study(folder / "series", folder)
    headers = time.perf_counter()
    volume = read_volume(select_ct_series(study))
    end = time.perf_counter()
    size = " x ".join(map(str, volume.geometry.shape))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{name:14} {size}: headers {headers - begin:.1f} s, pixels {end - headers:.1f} s, peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
