"""Random streams: one per patient and purpose, so that a new draw in one place changes nothing elsewhere."""

from zlib import crc32

import numpy as np


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator of a patient's draws for one purpose."""
    return np.random.default_rng((seed, crc32(purpose.encode())))
