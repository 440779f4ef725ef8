"""Draws docs/overview.png: what the default model finds in a phantom of the whole trunk.

python -m docs.draw_overview
"""

import tempfile
from pathlib import Path

from service.inference.bundle import default_bundle_path
from service.inference.model import load_bundle
from service.pipeline import segment_study
from service.request import Output, SegmentationRequest
from training.phantom.phantom import TRUNK, draw_phantom
from training.phantom.write import write_ct

PICTURE = Path(__file__).parent / "overview.png"
SEED = 114  # it has five lesions, each of another kind
SPACING_MM = (1.0, 1.0, 1.5)


def draw(out: Path) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as scratch:
        scan, result = Path(scratch) / "ct.nii.gz", Path(scratch) / "result"
        write_ct(draw_phantom(SEED, spacing_mm=SPACING_MM, field_of_view=TRUNK), scan)
        result.mkdir()
        request = SegmentationRequest(outputs=(Output.OVERVIEW,))
        segment_study(scan, result, load_bundle(default_bundle_path()), request)
        out.write_bytes((result / "overview.png").read_bytes())


if __name__ == "__main__":
    draw(PICTURE)
