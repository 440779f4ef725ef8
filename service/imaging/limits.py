"""What one upload may cost: every size that a file merely declares is held against these before memory is taken."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadLimits:
    """Bounds on reading one upload; a caller passes tighter ones where the machine is small."""

    #: Files in the upload, those inside archives included: a long multi-series study has some ten thousand.
    max_files: int = 20_000
    #: Bytes that all archives of the upload may expand to.
    max_expanded_bytes: int = 8 * 1024**3
    #: Expanded bytes of an archive over its own size; real CT reaches about 10, noise-free phantoms about 100.
    max_expansion_ratio: float = 200.0
    #: Archives inside archives: 2 opens a zip of zips and one more level.
    max_archive_depth: int = 2
    #: Voxels of one volume: 1024 x 1024 x 2048.
    max_voxels: int = 1024 * 1024 * 2048
