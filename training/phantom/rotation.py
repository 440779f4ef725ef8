"""Rotation matrices from angles."""

import numpy as np
from numpy.typing import NDArray


def rotation(tilt_x: float = 0.0, tilt_y: float = 0.0, tilt_z: float = 0.0) -> NDArray[np.float64]:
    """Rotation matrix from three angles in degrees, about x, then y, then z."""
    ax, ay, az = np.deg2rad([tilt_x, tilt_y, tilt_z])
    rx = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    ry = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    rz = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    out: NDArray[np.float64] = rz @ ry @ rx
    return out
