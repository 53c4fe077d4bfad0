"""Where the phantom's organs are painted: a deformed grid and simple solids on it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["FIELD_MM", "LABELS", "ORGAN", "TISSUES", "Canvas"]

LABELS: dict[int, str] = {
    1: "subcutaneous fat",
    2: "muscle",
    3: "inner fat",
    4: "right lung",
    5: "left lung",
    6: "trachea",
    7: "heart",
    8: "aorta",
    9: "inferior vena cava",
    10: "liver",
    11: "gallbladder",
    12: "spleen",
    13: "stomach",
    14: "pancreas",
    15: "right kidney",
    16: "left kidney",
    17: "bowel",
    18: "bladder",
    19: "vertebrae",
    20: "spinal cord",
    21: "ribs",
    22: "hip bones",
}
# What a voxel is made of; several organs consist of more than one tissue.
TISSUES = (
    "air",
    "fat",
    "muscle",
    "lung",
    "blood",
    "liver",
    "bile",
    "spleen",
    "stomach wall",
    "fluid",
    "pancreas",
    "kidney cortex",
    "kidney medulla",
    "bowel wall",
    "bowel content",
    "urine",
    "cortical bone",
    "spongy bone",
    "disc",
    "cord",
)
# Reference body: the field of view in mm, (z, y, x), whatever the size of the array.
FIELD_MM = np.array([288.0, 344.0, 344.0])
ORGAN = {name: number for number, name in LABELS.items()}
_TISSUE = {name: number for number, name in enumerate(TISSUES)}


@dataclass
class Canvas:
    """Arrays that organs are painted into.

    Parameters
    ----------
    z, y, x : np.ndarray
        Reference coordinates in mm of every voxel, float32 (Z, Y, X): z to superior, y to
        posterior, x to patient left, 0 in the middle of the body.
    margin_mm : float
        How far a coordinate may lie from the voxel's place on the undeformed grid.
    random : np.random.Generator
        Source of what differs between subjects.
    """

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray
    margin_mm: float
    random: np.random.Generator

    def __post_init__(self) -> None:
        self.labels = np.zeros(self.z.shape, dtype=np.uint8)
        self.tissues = np.zeros(self.z.shape, dtype=np.uint8)

    def box(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice]:
        """Part of the grid that can hold coordinates between `low` and `high` (z, y, x) in mm."""
        slices = []
        for axis, size in enumerate(self.z.shape):
            voxel = FIELD_MM[axis] / size
            first = (low[axis] - self.margin_mm + FIELD_MM[axis] / 2) / voxel
            last = (high[axis] + self.margin_mm + FIELD_MM[axis] / 2) / voxel
            slices.append(slice(max(0, int(first)), max(0, min(size, int(last) + 2))))
        return slices[0], slices[1], slices[2]

    def paint(
        self, box: tuple[slice, ...], mask: np.ndarray, organ: str | None, tissue: str
    ) -> None:
        """Give the masked voxels of a box an organ (``None`` keeps it) and a tissue."""
        if organ is not None:
            self.labels[box][mask] = ORGAN[organ]
        self.tissues[box][mask] = _TISSUE[tissue]

    def vary(self, value: float, share: float = 0.08) -> float:
        """Change a size or place by up to a share of itself, as subjects differ."""
        return float(value * (1 + share * self.random.uniform(-1, 1)))

    def ellipsoid(
        self,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        *,
        tilt_deg: float = 0.0,
    ) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Box and squared radius (1 on the surface) of an ellipsoid, axes (z, y, x) in mm.

        `tilt_deg` turns it about the y axis: positive raises its left end.
        """
        middle = np.asarray(centre)
        reach = np.asarray(radii)
        if tilt_deg:
            reach = np.array([max(radii[0], radii[2]), radii[1], max(radii[0], radii[2])])
        box = self.box(middle - reach, middle + reach)
        z, y, x = self.z[box] - middle[0], self.y[box] - middle[1], self.x[box] - middle[2]
        if tilt_deg:
            cosine, sine = np.cos(np.radians(tilt_deg)), np.sin(np.radians(tilt_deg))
            z, x = cosine * z - sine * x, sine * z + cosine * x
        radius = (z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2
        return box, radius

    def tube(
        self, points: list[tuple[float, float, float]], radius: float
    ) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Box and distance over `radius` (1 on the surface) from a line of (z, y, x) points."""
        line = np.asarray(points, dtype=np.float32)
        box = self.box(line.min(0) - radius, line.max(0) + radius)
        grid = (self.z[box], self.y[box], self.x[box])
        nearest = np.full(grid[0].shape, np.inf, dtype=np.float32)
        for start, end in pairwise(line):
            along = end - start
            part = sum((grid[k] - start[k]) * along[k] for k in range(3)) / float(along @ along)
            part = np.clip(part, 0, 1)
            square = sum((grid[k] - start[k] - part * along[k]) ** 2 for k in range(3))
            np.minimum(nearest, square, out=nearest)
        return box, np.sqrt(nearest) / radius
