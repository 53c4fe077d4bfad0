"""What of a scan is body or brain, and what is air or background."""

from __future__ import annotations

import numpy as np

__all__ = ["foreground_mask", "looks_like_hu", "sample_inside", "sample_of"]

# Voxels looked at when a statistic is taken of a large array.
SAMPLE_VOXELS = 2_000_000
# Outside air is darker than the lungs, in HU; air and lung are both below the body threshold.
HU_BODY = -500.0
HU_LUNG = -960.0
# Largest array whose foreground is found at full resolution.
FULL_RESOLUTION_VOXELS = 4_000_000


def sample_of(array: np.ndarray) -> np.ndarray:
    """Flat view of at most SAMPLE_VOXELS evenly strided voxels."""
    # Odd, because a step that divides an axis would keep hitting the same columns.
    step = -(-array.size // SAMPLE_VOXELS) | 1
    return array.reshape(-1)[::step]


def sample_inside(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Give ``sample_of(array[mask])`` without a copy of all values in the mask."""
    step = -(-int(np.count_nonzero(mask)) // SAMPLE_VOXELS) | 1
    parts, seen = [], 0
    for plane, inside in zip(array, mask, strict=True):
        values = plane[inside]
        parts.append(values[-seen % step :: step].copy())
        seen += len(values)
    return np.concatenate(parts)


def looks_like_hu(array: np.ndarray) -> bool:
    """Air near -1000 and soft tissue near 0, both in quantity."""
    sample = sample_of(array)
    if float(sample.min()) >= -200:
        return False
    tissue = np.mean((sample > -200) & (sample < 300))
    return bool(tissue > 0.01 and sample.min() > -10_000 and sample.max() < 40_000)


def _otsu(values: np.ndarray) -> tuple[float, float]:
    """Threshold between two classes of values, and the share of variance it explains."""
    counts, edges = np.histogram(values, bins=128)
    centres = 0.5 * (edges[:-1] + edges[1:])
    weight = np.cumsum(counts) / counts.sum()
    mean = np.cumsum(counts * centres) / counts.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (mean[-1] * weight - mean) ** 2 / (weight * (1 - weight))
    between = np.nan_to_num(between[:-1])
    best = int(np.argmax(between))
    variance = float(np.sum(counts * (centres - mean[-1]) ** 2) / counts.sum())
    return float(edges[best + 1]), float(between[best] / max(variance, 1e-30))


def _border(array: np.ndarray) -> np.ndarray:
    """Values on the six faces."""
    faces = [np.take(array, index, axis).ravel() for axis in range(3) for index in (0, -1)]
    return np.concatenate(faces)


def _threshold(array: np.ndarray) -> float | None:
    """Intensity above which a voxel is tissue; ``None`` where the scan has no background."""
    sample = sample_of(array).astype(np.float32)
    lowest = float(sample.min())
    high = float(np.percentile(sample, 99.5))
    if high <= lowest:
        high = float(sample.max())
    if high <= lowest:
        return None
    if looks_like_hu(array):
        return HU_BODY
    border = _border(array)
    width = high - lowest
    # Background set to one exact value: brain-extracted, masked or padded scans. Values right
    # above it in number are the noise of air that was clipped.
    exact = np.mean(sample == lowest)
    near = np.mean(sample <= lowest + 0.04 * width) - exact
    if exact > 0.02 and near < 0.3 * exact and np.mean(border == lowest) > 0.05:
        return lowest + 1e-6 * width
    # Air: a dark, narrow class of values that reaches the border.
    clipped = np.minimum(sample, high)
    split, explained = _otsu(clipped)
    dark = clipped[clipped <= split]
    for _ in range(4):  # the air peak lies below the first split when tissue is spread wide
        if dark.size < 100 or np.median(dark) - lowest < 0.08 * width:
            break
        split, explained = _otsu(dark)
        dark = dark[dark <= split]
    air = float(np.median(dark))
    spread = float(np.median(np.abs(dark - air))) * 1.4826
    is_air = (
        air - lowest < 0.08 * width and spread < 0.06 * width and dark.size > 0.03 * sample.size
    )
    if not is_air or np.mean(border <= split) < 0.1 or explained < 0.5:
        return None
    return min(split, air + max(5.0 * spread, 0.04 * width))


def foreground_mask(array: np.ndarray) -> np.ndarray:
    """Body or brain against air and background.

    Parameters
    ----------
    array : np.ndarray
        (z, y, x), raw or already in [0, 1]; raw is better for CT, because a window may clip
        everything below the air-tissue edge. HU are split at -500, masked scans at their exact
        background value, others at the edge of a dark and narrow class of values that reaches
        the border. Scans without such a class (crops inside the body) are all foreground.

    Returns
    -------
    np.ndarray
        bool, same shape; holes filled (also lungs, slice by slice along z), specks and thin
        things beside the body, such as the table, removed. Never empty.
    """
    threshold = _threshold(array)
    if threshold is None:
        return np.ones(array.shape, dtype=bool)
    step = 2 if array.size > FULL_RESOLUTION_VOXELS else 1
    coarse = array[::step, ::step, ::step]
    mask = coarse > threshold
    if threshold == HU_BODY:
        small = _clean(mask | _open_lungs(coarse, mask), opening=2)
    else:
        # Dark bone and lungs leave only a thin wall in MR; there is no table to cut off either.
        small = _clean(_fill(mask), opening=1)
    if step > 1:
        for axis in range(3):
            small = np.repeat(small, step, axis)
        small = small[: array.shape[0], : array.shape[1], : array.shape[2]]
    if not small.any():
        return np.ones(array.shape, dtype=bool)
    return small


def _open_lungs(array: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Dark regions of a CT that are lung cut by the edge of the scan, not air around the body."""
    from scipy import ndimage

    parts, count = ndimage.label(~body)
    if count == 0:
        return np.zeros_like(body)
    medians = np.full(count + 1, -np.inf, dtype=np.float32)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    large = [part for part in range(1, count + 1) if sizes[part] >= 0.001 * array.size]
    boxes = ndimage.find_objects(parts)
    for part in large:
        box = boxes[part - 1]
        medians[part] = np.median(array[box][parts[box] == part])
    return (medians > HU_LUNG)[parts]


def _clean(mask: np.ndarray, *, opening: int) -> np.ndarray:
    """Keep the large parts and fill what they enclose."""
    from scipy import ndimage

    eroded = ndimage.binary_opening(mask, iterations=opening) if min(mask.shape) > 16 else mask
    parts, count = ndimage.label(eroded)
    if count == 0:
        return _fill(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large = sizes >= 0.1 * sizes.max()
    body = large[parts]
    if eroded is not mask:
        body = ndimage.binary_dilation(body, iterations=opening, mask=mask)
    return _fill(body)


def _fill(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    # Lungs open at the end of a crop are closed within axial slices.
    return np.stack([ndimage.binary_fill_holes(part) for part in mask])
