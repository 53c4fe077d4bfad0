"""Scans of an anatomy in a contrast that no scanner has, and every scanner might."""

from __future__ import annotations

import numpy as np

from napari_s2dc.volumes.smooth_field import smooth_field

__all__ = ["render"]


def _values(regions: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mean of every region; some look alike, a small one may be metal or gas."""
    count = int(regions.max()) + 1
    means = random.uniform(0.08, 1.0, count)
    if random.random() < 0.4:
        levels = int(random.integers(3, 9))
        means = np.ceil(means * levels) / levels
    means[0] = 0.0
    small = np.flatnonzero(np.bincount(regions.ravel()) < 0.003 * regions.size)
    small = small[small > 0]
    if len(small) and random.random() < 0.2:
        means[random.choice(small)] = random.choice([0.0, 2.0])
    return means.astype(np.float32)


def _thick_slices(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Average and sample an axis coarsely, as thick slices do, and interpolate."""
    from scipy import interpolate, ndimage

    axis, step = int(random.integers(3)), random.uniform(1.5, 4.0)
    size = image.shape[axis]
    middles = np.unique(np.linspace(0, size - 1, max(round(size / step), 2)).round().astype(int))
    if len(middles) < 2:
        return image
    slices = ndimage.uniform_filter1d(image, round(step), axis=axis).take(middles, axis)
    between = interpolate.make_interp_spline(middles, slices, k=1, axis=axis)
    return np.asarray(between(np.arange(size)), dtype=np.float32)


def render(regions: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Show an anatomy in a random contrast.

    Parameters
    ----------
    regions : np.ndarray (z, y, x)
        Whole numbers; 0 is air.
    random : numpy.random.Generator
        Source of means, textures, shading, blur, slice thickness, noise and gamma.

    Returns
    -------
    np.ndarray
        float32 (z, y, x) in [0, 1], as the ``mr`` preset would leave it; air is 0 or noise.
    """
    from scipy import ndimage

    z, y, x = regions.shape
    shape = (z, y, x)
    means = _values(regions, random)
    texture = smooth_field(shape, (max(z // 6, 1), max(y // 6, 1), max(x // 6, 1)), random)
    fine = random.standard_normal(shape, dtype=np.float32)
    texture += 2 * ndimage.uniform_filter(fine, 3)
    roughness = random.uniform(0, 0.12) * random.uniform(0, 1, len(means))
    roughness[0] = 0
    image = means[regions] + roughness.astype(np.float32)[regions] * texture
    image *= np.exp(random.uniform(0, 0.3) * smooth_field(shape, (2, 2, 2), random))
    image = ndimage.gaussian_filter(image, random.uniform(0, 1.0, 3), truncate=2.0)
    if random.random() < 0.3:
        image = _thick_slices(image, random)
    noise = random.uniform(0, 0.06)
    image = image + noise * random.standard_normal(shape, dtype=np.float32)
    if random.random() < 0.5:  # magnitude images of MR have Rician noise
        image = np.hypot(image, noise * random.standard_normal(shape, dtype=np.float32))
    inside = image[regions > 0]
    if not len(inside):
        return np.zeros(shape, np.float32)
    low, high = np.percentile(inside[:: max(1, len(inside) // 50_000)], [0.5, 99.5])
    image = np.clip((image - low) / max(high - low, 1e-6), 0.0, 1.0)
    return np.asarray(image ** random.uniform(0.7, 1.5), dtype=np.float32)
