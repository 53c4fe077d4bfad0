"""Intensities to [0, 1], and the spacing that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from napari_s2dc.errors import ConfigurationError, VolumeError
from napari_s2dc.volumes.foreground import foreground_mask, looks_like_hu, sample_inside
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "PRESETS",
    "Preset",
    "Scaling",
    "foreground_mask",
    "guess_preset",
    "normalize",
    "preset_of_scan",
    "resample",
    "resample_to",
    "scaling_of",
    "smoothed",
]


@dataclass(frozen=True)
class Preset:
    """How intensities become [0, 1].

    Parameters
    ----------
    name : str
        Name used in settings.
    title : str
        Words to show.
    unit : str
        ``"value"``: `low` and `high` are intensities (HU for CT); ``"percentile"``: they are
        percentiles of the foreground.
    low, high : float
        Become 0 and 1; what lies outside is clipped.
    bends : tuple of (float, float)
        Intensities between, ascending, and what they become; in between the map is straight.
    """

    name: str
    title: str
    unit: str
    low: float
    high: float
    bends: tuple[tuple[float, float], ...] = ()


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # Soft tissue gets most of the range; lung and bone keep their own parts of it.
        Preset(
            "ct",
            "CT, all tissues (-1000 to 1500 HU, most of it for -160 to 240)",
            "value",
            -1000.0,
            1500.0,
            bends=((-160.0, 0.15), (240.0, 0.85)),
        ),
        Preset("ct_soft_tissue", "CT, soft tissue (-160 to 240 HU)", "value", -160.0, 240.0),
        Preset("ct_lung", "CT, lung (-1350 to 150 HU)", "value", -1350.0, 150.0),
        Preset("ct_bone", "CT, bone (-500 to 1300 HU)", "value", -500.0, 1300.0),
        Preset("ct_wide", "CT, wide (-1000 to 1000 HU)", "value", -1000.0, 1000.0),
        Preset("mr", "MR (0.5 to 99.5 percentile of the foreground)", "percentile", 0.5, 99.5),
        Preset("pet", "PET (0 to the 99.9 percentile of the foreground)", "percentile", 0.0, 99.9),
    )
}


def guess_preset(array: np.ndarray) -> str:
    """Name of the preset that raw intensities ask for (setting ``auto``).

    Parameters
    ----------
    array : np.ndarray
        Raw intensities (z, y, x).

    Returns
    -------
    str
        ``"ct"`` when the minimum lies below -200 and the values look like Hounsfield units,
        otherwise ``"mr"``. PET cannot be told from values and must be named.
    """
    return "ct" if looks_like_hu(array) else "mr"


def preset_of_scan(volume: Volume) -> str:
    """Preset of a scan's own kind: as the file states it, else guessed from its values."""
    stated = {"ct": "ct", "mr": "mr", "pet": "pet"}.get(volume.modality or "")
    return stated or guess_preset(volume.array)


@dataclass(frozen=True)
class Scaling:
    """Map from raw intensities to [0, 1], for a scan or any part of it.

    Parameters
    ----------
    low, high : float
        Become 0 and 1; what lies outside is clipped.
    bends : tuple of (float, float)
        As of :class:`Preset`.
    """

    low: float
    high: float
    bends: tuple[tuple[float, float], ...] = ()

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Map an array; float32, same shape."""
        points = ((self.low, 0.0), *self.bends, (self.high, 1.0))
        scaled = np.zeros(array.shape, np.float32)
        source, part = array.astype(np.float32, copy=False), np.empty_like(scaled)
        for (low, value), (high, end) in pairwise(points):
            np.clip(source, np.float32(low), np.float32(high), out=part)
            part -= np.float32(low)
            part *= np.float32((end - value) / (high - low))
            scaled += part
        return np.clip(scaled, 0.0, 1.0, out=scaled)


def scaling_of(
    array: np.ndarray, preset_name: str, foreground: np.ndarray | None = None
) -> Scaling:
    """Find how a preset maps the intensities of a scan.

    Parameters
    ----------
    array : np.ndarray
        (z, y, x), raw values (HU for the CT presets).
    preset_name : str
        A key of :data:`PRESETS`, or ``"auto"`` for :func:`guess_preset`.
    foreground : np.ndarray, optional
        :func:`foreground_mask` of the array, where it is known already.

    Raises
    ------
    ConfigurationError
        No such preset.
    VolumeError
        All values are equal.
    """
    name = guess_preset(array) if preset_name == "auto" else preset_name
    if name not in PRESETS:
        raise ConfigurationError(
            f"There is no intensity preset '{preset_name}'.",
            f"Use auto, {', '.join(PRESETS)}.",
        )
    preset = PRESETS[name]
    low, high = preset.low, preset.high
    if preset.unit == "percentile":
        inside = sample_inside(array, foreground_mask(array) if foreground is None else foreground)
        low, high = (float(value) for value in np.percentile(inside, [low, high]))
        if name == "pet":
            low = min(0.0, float(array.min()))
        if high <= low:
            low, high = float(array.min()), float(array.max())
        if high <= low:
            raise VolumeError(f"The scan has the same value, {low:g}, in every voxel.")
    return Scaling(low, high, preset.bends)


def normalize(
    array: np.ndarray, preset_name: str, foreground: np.ndarray | None = None
) -> np.ndarray:
    """Map raw intensities to [0, 1].

    Parameters
    ----------
    array, preset_name, foreground
        As for :func:`scaling_of`.

    Returns
    -------
    np.ndarray
        float32 in [0, 1], same shape. With ``mr`` and ``pet`` the percentiles are taken over
        :func:`foreground_mask`, so that the share of air does not shift them.

    Raises
    ------
    ConfigurationError
        No such preset.
    VolumeError
        All values are equal.
    """
    return scaling_of(array, preset_name, foreground)(array)


def resample(
    volume: Volume, spacing_mm: tuple[float, float, float], *, labels: bool = False
) -> Volume:
    """Change the voxel spacing, keeping the field of view and the direction of the axes.

    Parameters
    ----------
    volume : Volume
        Scan or label map.
    spacing_mm : tuple of float
        Wanted spacing (z, y, x) in mm.
    labels : bool
        Nearest neighbour; otherwise linear, after a Gaussian where voxels grow (no aliasing).

    Returns
    -------
    Volume
        Outer corner at the same mm as before; ``original`` is ``None``, because the file's grid
        is that of the given volume (:func:`resample_to` goes back). The same volume when the
        spacing already fits within 1e-3.

    Raises
    ------
    VolumeError
        A spacing that is not positive, or an array that would exceed 2 billion voxels.
    """
    from scipy import ndimage

    wanted = np.asarray(spacing_mm, dtype=np.float64)
    if wanted.shape != (3,) or not np.isfinite(wanted).all() or (wanted <= 0).any():
        raise VolumeError(f"A spacing of {tuple(spacing_mm)} mm cannot be resampled to.")
    ratio = wanted / np.asarray(volume.spacing_mm)
    if np.abs(ratio - 1).max() < 1e-3:
        return volume
    shape = np.maximum(1, np.rint(np.asarray(volume.shape) / ratio)).astype(int)
    if np.prod(shape.astype(float)) > 2e9:
        raise VolumeError(
            f"{volume.name} would have {tuple(shape.tolist())} voxels at {tuple(spacing_mm)} mm.",
            "Choose a larger spacing.",
        )
    offset = (ratio - 1) / 2
    step = np.eye(4)
    step[:3, :3] = np.diag(ratio)
    step[:3, 3] = offset
    array = volume.array
    if not labels:
        array = smoothed(array.astype(np.float32, copy=False), ratio)
    resampled = ndimage.affine_transform(
        array, ratio, offset, output_shape=tuple(shape), order=0 if labels else 1, mode="nearest"
    )
    return replace(volume, array=resampled, affine=volume.affine @ step, original=None)


def smoothed(array: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Blur what voxels that are `ratio` times as large along each axis (z, y, x) cannot show."""
    from scipy import ndimage

    sigma = 0.4 * np.sqrt(np.maximum(ratio**2 - 1, 0))
    if not sigma.any():
        return array
    blurred: np.ndarray = ndimage.gaussian_filter(array, sigma, mode="nearest", truncate=3.0)
    return blurred


def resample_to(
    volume: Volume, like: Volume, *, labels: bool = False, outside: float = 0.0
) -> Volume:
    """Bring a volume onto the grid of another, by their positions in mm.

    Parameters
    ----------
    volume : Volume
        What to bring.
    like : Volume
        Grid to bring it to; its file geometry comes with it, so the result can be written there.
    labels : bool
        Nearest neighbour instead of linear.
    outside : float
        Value where `volume` has no voxel.

    Returns
    -------
    Volume
        On the grid of `like`.
    """
    from scipy import ndimage

    matrix = np.linalg.inv(volume.affine) @ like.affine
    diagonal = np.diag(matrix)[:3]
    straight = np.abs(matrix[:3, :3] - np.diag(diagonal)).max() < 1e-6
    array = volume.array if labels else volume.array.astype(np.float32, copy=False)
    resampled = ndimage.affine_transform(
        array,
        diagonal if straight else matrix[:3, :3],  # one axis at a time is much faster
        matrix[:3, 3],
        output_shape=like.shape,
        order=0 if labels else 1,
        mode="grid-constant",
        cval=outside,
    )
    path: Path | None = like.path
    return replace(like, array=resampled, name=volume.name, path=path)
