"""Pictures of the window, looked at where napari draws the scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def read(folder: Path, names: list[str]) -> list[np.ndarray]:
    """Read pictures (H, W, 4)."""
    return [np.asarray(Image.open(folder / f"{name}.png")) for name in names]


def share_that_differs(one: np.ndarray, other: np.ndarray) -> float:
    """Give the share of pixels that differ in a part that is always canvas, whatever the panels.

    A quarter to all of it in what the scripts make; nothing where a step was not drawn.
    """
    height, width = one.shape[:2]
    canvas = slice(height // 5, 4 * height // 5), slice(35 * width // 100, 60 * width // 100)
    return float((one[canvas] != other[canvas]).any(axis=-1).mean())
