"""Peak memory of a scan and of one twice as long, with the default bundle and with a Swin UNETR of the published size.

    python -m benchmarks.memory [--slices 500 1000] [--overlap 0] [--masks everywhere] [--bundles BUNDLE ...]

The scans are phantoms of 512 x 512 voxels of 0.8 x 0.8 x 1 mm, mirrored along the body. The weights of the Swin UNETR
are random. Its heads are those that training begins with, and its masks are empty: what the network costs. With
`--masks everywhere` they are random too, and nearly all of a scan lies near a surface of some label: the most that
can have to be kept. Each run is a process of its own. Needs the extra `training`.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.gpu import synthetic_scan
from benchmarks.pipeline import run
from benchmarks.random_swin import random_swin
from service.inference.bundle import default_bundle_path

EDGE = 512


def main() -> None:
    """A line for each bundle: peak RSS of each scan, and the ratio of the last to the first."""
    parser = argparse.ArgumentParser(description="Peak memory of long scans.")
    parser.add_argument("--slices", type=int, nargs="+", default=[500, 1000])
    parser.add_argument("--overlap", type=float, default=0.0)
    parser.add_argument("--masks", choices=("none", "everywhere"), default="none", help="those of the Swin UNETR")
    parser.add_argument("--bundles", type=Path, nargs="+", help="instead of the default bundle and a random Swin UNETR")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundles = chosen.bundles or [
            default_bundle_path(),
            random_swin(folder, finds_nothing=chosen.masks == "none").bundle,
        ]
        scans = [folder / f"{count}.nii" for count in chosen.slices]
        for scan, count in zip(scans, chosen.slices, strict=True):
            synthetic_scan(scan, (EDGE, EDGE, count))
        for bundle in bundles:
            options = ["--bundle", str(bundle), "--overlap", str(chosen.overlap), "--postprocessing", "viscera"]
            runs = [run("ours.py", scan, folder / f"{bundle.name}-{scan.stem}", options) for scan in scans]
            peaks = [done.peak_mib * 1024**2 / 1e9 for done in runs]
            told = (
                f"{count} slices {peak:.2f} GB in {done.seconds:.0f} s"
                for count, peak, done in zip(chosen.slices, peaks, runs, strict=True)
            )
            print(f"{bundle.name}: {', '.join(told)}; ratio {peaks[-1] / peaks[0]:.2f}", flush=True)
            for stage in runs[0].peak_mib_by_stage:
                in_stage = (f"{done.peak_mib_by_stage[stage] * 1024**2 / 1e9:.2f}" for done in runs)
                print(f"    {stage:15s} {' / '.join(in_stage)} GB", flush=True)


if __name__ == "__main__":
    main()
