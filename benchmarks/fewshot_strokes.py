"""Strokes as a person paints them: a few curves of each class in one slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

STROKES = 5
LENGTH_VOX = (15, 30)
"""Shortest and longest stroke that is tried, in voxels along the curve."""
_BEGINNINGS = 5
_CURVES = 12
_TURN_RAD = 0.25
"""Standard deviation of the change of direction from one voxel to the next."""
_DODGES_RAD = (0.0, 0.4, -0.4, 0.9, -0.9, 1.5, -1.5)
"""Turns that are tried, in this order, where going on would leave the region."""


def largest(labels: np.ndarray, among: Sequence[int], number: int) -> list[int]:
    """Of some labels, those of the largest structures, the largest first."""
    sizes = np.bincount(labels.ravel(), minlength=max(among) + 1)
    return sorted(among, key=lambda label: -int(sizes[label]))[:number]


def best_slice(structure: np.ndarray) -> int:
    """Axial slice that shows most of a structure (Z, Y, X)."""
    return int(structure.sum((1, 2)).argmax())


def paint(region: np.ndarray, random: np.random.Generator, strokes: int = STROKES) -> np.ndarray:
    """Draw strokes that stay inside a region.

    Parameters
    ----------
    region : np.ndarray (Y, X)
        Where the class is, boolean.
    random : np.random.Generator
        Decides beginnings, directions, lengths and widths (one or two voxels).
    strokes : int
        How many.

    Returns
    -------
    np.ndarray (Y, X)
        Painted voxels, boolean.

    Notes
    -----
    Curves keep off the region's border where they can. A stroke begins at the one of a few random
    voxels that is farthest from the earlier strokes, since people spread them; of several curves
    from there the longest is kept.
    """
    inner = ndimage.binary_erosion(region)
    inside = inner if inner.any() else region
    places = np.argwhere(inside)
    painted = np.zeros_like(region)
    for _ in range(strokes):
        draws = places[random.integers(len(places), size=_BEGINNINGS)]
        if painted.any():
            away = ndimage.distance_transform_edt(~painted)
            draws = draws[np.argsort(-away[tuple(draws.T)])]
        length = int(random.integers(LENGTH_VOX[0], LENGTH_VOX[1], endpoint=True))
        curve = max((_curve(inside, draws[0], length, random) for _ in range(_CURVES)), key=len)
        stroke = np.zeros_like(region)
        stroke[tuple(np.array(curve).T)] = True
        if random.random() < 0.5:
            stroke = ndimage.binary_dilation(stroke, np.ones((2, 2), bool))
        painted |= stroke & region
    return painted


def _curve(
    inside: np.ndarray, start: np.ndarray, length: int, random: np.random.Generator
) -> list[tuple[int, int]]:
    """Walk on in a direction that changes slowly, until the length is reached or no way is left."""
    place, direction = start.astype(float), random.uniform(0, 2 * np.pi)
    curve = [(int(start[0]), int(start[1]))]
    while len(curve) < length:
        direction += random.normal(0, _TURN_RAD)
        for dodge in _DODGES_RAD:
            onwards = np.add(place, (np.sin(direction + dodge), np.cos(direction + dodge)))
            voxel = (round(float(onwards[0])), round(float(onwards[1])))
            within = all(0 <= at < side for at, side in zip(voxel, inside.shape, strict=True))
            if within and inside[voxel] and voxel not in curve[:-1]:
                break
        else:
            return curve
        place, direction = onwards, direction + dodge
        if voxel != curve[-1]:
            curve.append(voxel)
    return curve


def strokes_on(
    labels: np.ndarray,
    body: np.ndarray,
    structures: Sequence[int],
    seed: int,
    *,
    background_everywhere: bool,
) -> np.ndarray:
    """Paint strokes of some structures, and of the background.

    Those of the background are one in the air outside of the body where there is some, and the
    others in the body.

    Parameters
    ----------
    labels : np.ndarray (Z, Y, X)
        The truth; other labels than `structures` are background.
    body : np.ndarray (Z, Y, X)
        What is no air round the body, boolean.
    structures : sequence of int
        Labels that are painted, each in the slice that shows most of it.
    seed : int
        Same seed, same strokes.
    background_everywhere : bool
        Paint background in the slice of every structure; otherwise only in the slice with most
        structures, the largest of them.

    Returns
    -------
    np.ndarray (Z, Y, X)
        int16; 0 where background was painted, -1 where nothing was.
    """
    random = np.random.default_rng(seed)
    painted = np.full(labels.shape, -1, np.int16)
    slices = [best_slice(labels == label) for label in structures]
    for label, z in zip(structures, slices, strict=True):
        painted[z][paint(labels[z] == label, random)] = label
    wanted = np.isin(labels, structures)
    if not background_everywhere:
        kinds = np.array([np.isin(structures, plane).sum() for plane in labels])
        slices = [int(np.lexsort((wanted.sum((1, 2)), kinds))[-1])]
    for z in sorted(set(slices)):
        regions = [(~body[z] & ~wanted[z], 1), (body[z] & ~wanted[z], STROKES - 1)]
        if not regions[0][0].any():
            regions = [(~wanted[z], STROKES)]
        for region, number in regions:
            painted[z][paint(region, random, number)] = 0
    return painted
