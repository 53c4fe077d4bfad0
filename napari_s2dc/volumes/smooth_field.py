"""Smooth random fields: what bends the phantom, shades it and shapes random anatomies."""

from __future__ import annotations

import numpy as np

__all__ = ["smooth_field"]


def _spline_basis(size: int, knots: int) -> np.ndarray:
    """(size, knots + 3) cubic B-spline weights of `size` samples over `knots` intervals."""
    place = (np.arange(size) + 0.5) / size * knots
    first = np.minimum(place.astype(int), knots - 1)
    part = place - first
    weights = np.stack(
        [
            (1 - part) ** 3,
            3 * part**3 - 6 * part**2 + 4,
            -3 * part**3 + 3 * part**2 + 3 * part + 1,
            part**3,
        ],
        axis=1,
    )
    basis = np.zeros((size, knots + 3), dtype=np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights / 6, axis=1)
    return basis


def smooth_field(
    shape: tuple[int, int, int], knots: tuple[int, int, int], random: np.random.Generator
) -> np.ndarray:
    """Draw a smooth random field of about unit variance.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x).
    knots : tuple of int
        Intervals of the cubic B-spline along (z, y, x): more of them vary faster.
    random : numpy.random.Generator
        Source of the coefficients.

    Returns
    -------
    np.ndarray
        float32 (z, y, x).
    """
    field = random.standard_normal([count + 3 for count in knots]).astype(np.float32)
    for axis, (size, count) in enumerate(zip(shape, knots, strict=True)):
        field = np.moveaxis(np.tensordot(_spline_basis(size, count), field, (1, axis)), 0, axis)
    return np.ascontiguousarray(field) * np.float32(2.6)  # cubic weights shrink the variance
