"""Endless anatomies for training: torsos, heads and ensembles of random shapes, without contrast.

Shapes that no body has keep an encoder from learning one part of the body by heart.
Source of the idea: Dey et al., "Learning general-purpose biomedical volume representations using
randomized synthesis", ICLR 2025; Billot et al., "SynthSeg", Medical Image Analysis 2023.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from napari_s2dc.volumes.phantom import torso_regions
from napari_s2dc.volumes.smooth_field import smooth_field

__all__ = ["random_anatomy"]

# A torso takes half a second, so a few are kept, and cut and zoomed anew each time.
_TORSOS = 32
_TORSO_SHAPE = (96, 128, 128)
_TORSO_STREAM = 0x70


def random_anatomy(shape: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Draw an anatomy: part of a torso, a head, or an ensemble of random shapes.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x).
    random : numpy.random.Generator
        Source of everything that differs.

    Returns
    -------
    np.ndarray
        uint8 (z, y, x): regions without gaps, 0 is air.
    """
    from skimage.segmentation import relabel_sequential

    draw = (_part_of_torso, _head, _shapes)[random.choice(3, p=(0.4, 0.25, 0.35))]
    regions = draw(shape, random)
    dense: np.ndarray = relabel_sequential(regions)[0].astype(np.uint8)
    return dense


@lru_cache(maxsize=_TORSOS)
def _torso(number: int) -> np.ndarray:
    return torso_regions(_TORSO_SHAPE, np.random.default_rng([_TORSO_STREAM, number]))


def _part_of_torso(shape: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Cut a torso at a random place and in a random resolution."""
    whole = _torso(int(random.integers(_TORSOS)))
    # 3 mm over it is the side of a voxel; large sub-volumes see a torso as large in them.
    zoom = random.uniform(0.7, 1.6) * max(1.0, sum(shape) / 240)
    cut = whole
    for axis, (side, size) in enumerate(zip(whole.shape, shape, strict=True)):
        spare = side - size / zoom
        start = random.uniform(min(spare, 0), max(spare, 0))
        places = np.floor(start + (np.arange(size) + 0.5) / zoom).astype(int)
        cut = cut.take(np.clip(places, 0, side - 1), axis)
        outside = (places < 0) | (places >= side)
        cut[(slice(None),) * axis + (outside,)] = 0
    return cut


def _axes(shape: tuple[int, int, int], random: np.random.Generator) -> list[np.ndarray]:
    """Bent coordinates (z, y, x), about -1 to 1 over the mean side."""
    axes = []
    unit = sum(shape) / 6
    for axis, size in enumerate(shape):
        straight = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) / np.float32(unit)
        straight = straight.reshape([-1 if other == axis else 1 for other in range(3)])
        axes.append(straight + np.float32(0.08) * smooth_field(shape, (3, 3, 3), random))
    return axes


def _ellipsoid(axes: list[np.ndarray], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Radius of every voxel, 1 on the surface."""
    square = sum(
        ((place - np.float32(middle)) / np.float32(radius)) ** 2
        for place, middle, radius in zip(axes, centre, radii, strict=True)
    )
    return np.asarray(np.sqrt(square))


def _knots(shape: tuple[int, int, int], voxels: float) -> tuple[int, int, int]:
    """Knots of a field that varies over about so many voxels."""
    z, y, x = (max(1, round(size / voxels)) for size in shape)
    return z, y, x


def _head(shape: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Nested shells, a folded cortex, and pairs of inner structures on both sides of a plane."""
    axes = _axes(shape, random)
    size = random.uniform(0.7, 1.8)
    centre = random.uniform(-0.3, 0.3, 3)
    radii = size * np.array([0.95, 1.15, 0.85]) * random.uniform(0.9, 1.1, 3)
    radius = _ellipsoid(axes, centre, radii)
    folds = np.abs(smooth_field(shape, _knots(shape, random.uniform(5, 9) * size), random))
    regions = np.zeros(shape, np.uint8)
    if random.random() < 0.7:  # else the brain was extracted
        for region, border in enumerate((1.0, 0.93, 0.86), start=1):
            regions[radius < border] = region
    regions[radius < 0.84 - 0.03 * folds] = 4
    regions[radius < 0.74 - 0.10 * folds] = 5
    low = _ellipsoid(axes, centre + radii * (-0.5, 0.5, 0.0), radii * (0.3, 0.36, 0.5))
    regions[low < 1] = 6
    regions[low < 0.9 - 0.3 * folds] = 7
    mirrored = [axes[0], axes[1], np.abs(axes[2] - np.float32(centre[2])) + np.float32(centre[2])]
    for region in range(8, 8 + int(random.integers(2, 8))):
        place = centre + radii * (*random.uniform(-0.3, 0.35, 2), random.uniform(0.04, 0.4))
        inner = _ellipsoid(mirrored, place, radii * random.uniform(0.05, 0.22, 3))
        regions[(inner < 1) & (regions > 0)] = region
    return regions


def _shapes(shape: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Regions where one of several smooth fields is the largest, walls between, and inclusions."""
    count = int(random.integers(4, 16))
    scale = random.uniform(10, 28)
    best = np.full(shape, -np.inf, np.float32)
    second = best.copy()
    regions = np.zeros(shape, np.uint8)
    for region in range(1, count + 1):
        knots = _knots(shape, scale * random.uniform(0.7, 1.4))
        field = smooth_field(shape, knots, random) + np.float32(random.normal(0, 0.4))
        second = np.maximum(second, np.minimum(best, field))
        regions[field > best] = region
        best = np.maximum(best, field)
    if random.random() < 0.5:
        regions[best - second < random.uniform(0.05, 0.25)] = count + 1
    axes = _axes(shape, random)
    reach = 3 * np.array(shape) / sum(shape)
    for region in range(count + 2, count + 2 + int(random.integers(0, 10))):
        place, radii = random.uniform(-reach, reach), random.uniform(0.06, 0.35, 3)
        inclusion = _ellipsoid(axes, place, radii)
        regions[inclusion < 1] = region
    if random.random() < 0.7:
        body = _ellipsoid(axes, random.uniform(-0.3, 0.3, 3), reach * random.uniform(0.7, 1.4, 3))
        regions[body > 1] = 0
    return regions
