"""A labelled torso made by formulas, so that tests and the tour need no file."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.anatomy import paint_torso
from napari_s2dc.volumes.canvas import FIELD_MM, LABELS, TISSUES, Canvas
from napari_s2dc.volumes.smooth_field import smooth_field
from napari_s2dc.volumes.volume import Volume

__all__ = ["LABELS", "Contrast", "phantom", "torso_regions"]

Contrast = Literal["ct", "t1", "t2", "pet"]

# Tissue: CT in HU; T1- and T2-weighted signal, 1 = brightest usual tissue; standardised uptake of
# FDG an hour after injection, usual values, rounded (an atlas: Wang et al., Mol Imaging Biol 2007);
# texture as a share.
_VALUES: dict[str, tuple[float, float, float, float, float]] = {
    "air": (-1000.0, 0.01, 0.01, 0.02, 0.0),
    "fat": (-105.0, 0.90, 0.62, 0.25, 0.10),
    "muscle": (52.0, 0.36, 0.20, 0.65, 0.12),
    "lung": (-845.0, 0.05, 0.06, 0.45, 0.60),
    "blood": (45.0, 0.25, 0.15, 1.6, 0.05),
    "liver": (60.0, 0.50, 0.26, 2.2, 0.12),
    "bile": (8.0, 0.20, 0.90, 0.9, 0.03),
    "spleen": (50.0, 0.33, 0.48, 1.8, 0.10),
    "stomach wall": (40.0, 0.34, 0.33, 1.7, 0.10),
    "fluid": (12.0, 0.17, 0.85, 0.7, 0.10),
    "pancreas": (38.0, 0.53, 0.34, 1.5, 0.22),
    "kidney cortex": (36.0, 0.40, 0.50, 2.6, 0.08),
    "kidney medulla": (28.0, 0.29, 0.62, 4.5, 0.08),
    "bowel wall": (42.0, 0.36, 0.33, 1.4, 0.10),
    "bowel content": (18.0, 0.30, 0.66, 0.9, 0.30),
    "urine": (4.0, 0.15, 0.97, 12.0, 0.02),
    "cortical bone": (620.0, 0.06, 0.05, 0.6, 0.25),
    "spongy bone": (190.0, 0.58, 0.36, 1.4, 0.30),
    "disc": (85.0, 0.27, 0.42, 0.7, 0.10),
    "cord": (35.0, 0.42, 0.30, 1.6, 0.05),
}
# A point looks 6 mm wide at half its height.
_PET_SIGMA_MM = 2.5
# What contrast agent adds in CT (HU) at full phase.
_ENHANCEMENT = {
    "blood": 150.0,
    "kidney cortex": 130.0,
    "kidney medulla": 60.0,
    "spleen": 65.0,
    "liver": 45.0,
    "pancreas": 50.0,
    "muscle": 10.0,
    "stomach wall": 30.0,
    "bowel wall": 40.0,
}


def _rotation(angles_deg: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) about the axes (z, y, x), in this order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles_deg)):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _coordinates(
    shape: tuple[int, int, int], random: np.random.Generator
) -> tuple[list[np.ndarray], float]:
    """Place every voxel in the reference body, (z, y, x) mm; also the farthest it moved."""
    axes = [
        ((np.arange(size) + 0.5) / size - 0.5) * length
        for size, length in zip(shape, FIELD_MM, strict=True)
    ]
    pose = _rotation(random.uniform(-4, 4, 3)) / random.uniform(0.95, 1.07)
    shift = random.uniform(-6, 6, 3)
    coordinates = []
    moved = 0.0
    for row in range(3):
        straight = sum(
            (pose[row, axis] * axes[axis])
            .astype(np.float32)
            .reshape([-1 if other == axis else 1 for other in range(3)])
            for axis in range(3)
        )
        warp = 3.0 * smooth_field(shape, (4, 4, 4), random)
        place = np.asarray(straight + warp + np.float32(shift[row]), dtype=np.float32)
        grid = axes[row].astype(np.float32).reshape([-1 if o == row else 1 for o in range(3)])
        moved = max(moved, float(np.abs(place - grid).max()))
        coordinates.append(place)
    return coordinates, moved


def _tissue_values(contrast: Contrast, random: np.random.Generator) -> np.ndarray:
    """(tissues, 2): mean and texture amplitude of each tissue in this subject's scan."""
    column = get_args(Contrast).index(contrast)
    phase = random.uniform(0, 1)
    table = np.zeros((len(TISSUES), 2), dtype=np.float32)
    for index, tissue in enumerate(TISSUES):
        values = _VALUES[tissue]
        mean, texture = values[column], values[-1]
        if contrast == "ct":
            mean += phase * _ENHANCEMENT.get(tissue, 0.0)
            jitter = random.uniform(-8, 8) if tissue != "air" else 0.0
            table[index] = mean + jitter, 100 * texture
        else:
            mean *= random.uniform(0.9, 1.1)
            table[index] = mean, texture * mean
    return table


def _intensities(
    tissues: np.ndarray, contrast: Contrast, random: np.random.Generator
) -> np.ndarray:
    from scipy import ndimage

    shape = (tissues.shape[0], tissues.shape[1], tissues.shape[2])
    table = _tissue_values(contrast, random)
    coarse = smooth_field(shape, (12, 16, 16), random)
    fine = random.standard_normal(shape, dtype=np.float32)
    fine = ndimage.uniform_filter(fine, 3) * np.float32(3.0)
    texture = 0.6 * coarse + 0.6 * fine
    # Lung vessels: the bright ridges where two smooth fields cross zero together.
    lung = tissues == TISSUES.index("lung")
    texture[lung] = 6.0 * np.exp(-((2.2 * coarse[lung]) ** 2)) + 0.6 * fine[lung] - 2.0
    image = table[:, 0][tissues] + table[:, 1][tissues] * texture
    image = ndimage.gaussian_filter(image, 0.5, truncate=2.0)  # partial volume at the edges
    if contrast == "pet":
        return _emission(image, random)
    bias = smooth_field(shape, (2, 2, 2), random)
    if contrast == "ct":
        noise = random.uniform(10, 20) * random.standard_normal(shape, dtype=np.float32)
        image += noise + 4 * bias
        return np.rint(np.clip(image, -1024, 3071)).astype(np.float32)
    image *= np.exp(0.18 * bias)
    sigma = random.uniform(0.012, 0.022)
    real = image + sigma * random.standard_normal(shape, dtype=np.float32)
    imaginary = sigma * random.standard_normal(shape, dtype=np.float32)
    gain = random.uniform(400, 1800)  # MR has no unit; every scanner scales otherwise
    return np.rint(gain * np.hypot(real, imaginary)).astype(np.float32)


def _emission(uptake: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """PET of an uptake: the blur of a scanner, and noise of counts that was smoothed with it."""
    from scipy import ndimage

    blur = _PET_SIGMA_MM * np.asarray(uptake.shape) / FIELD_MM  # in voxels
    counts = np.sqrt(uptake.clip(min=0)) * random.standard_normal(uptake.shape, dtype=np.float32)
    noise = ndimage.gaussian_filter(counts, blur)
    noise *= random.uniform(0.05, 0.1) / noise.std()
    image = ndimage.gaussian_filter(uptake, blur) + noise
    return np.round(image.clip(min=0), 3).astype(np.float32)


def _torso(shape: tuple[int, int, int], random: np.random.Generator) -> Canvas:
    (z, y, x), moved = _coordinates(shape, random)
    canvas = Canvas(z, y, x, moved, random)
    paint_torso(canvas)
    return canvas


def torso_regions(shape: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """Paint a torso of which every tissue of every organ is a region of its own.

    Parameters
    ----------
    shape : tuple of int
        Voxels (z, y, x) of the whole torso, as for :func:`phantom`.
    random : numpy.random.Generator
        The subject.

    Returns
    -------
    np.ndarray
        uint8 (z, y, x), from 0 (air outside the body) without gaps.
    """
    canvas = _torso(shape, random)
    both = canvas.labels.astype(np.int64) * len(TISSUES) + canvas.tissues
    present, regions = np.unique(both, return_inverse=True)
    assert present[0] == 0
    return regions.reshape(shape).astype(np.uint8)


def phantom(
    shape: tuple[int, int, int] = (96, 128, 128),
    spacing_mm: float | tuple[float, float, float] = 3.0,
    *,
    seed: int = 0,
    contrast: Contrast = "ct",
) -> tuple[Volume, Volume]:
    """Make the scan of a torso and its label map.

    Parameters
    ----------
    shape : tuple of int
        Voxels along (z, y, x), at least 8 each. The whole torso, lungs to bladder, always fills
        the field of view.
    spacing_mm : float or tuple of float
        Voxel spacing written into the affine, mm.
    seed : int
        The subject: sizes and places of organs, smooth deformation, pose, contrast phase,
        texture and noise. The same seed gives the same anatomy in every contrast.
    contrast : {"ct", "t1", "t2", "pet"}
        CT in HU, MR-like signal in arbitrary units with bias field and Rician noise, or
        standardised uptake of FDG, blurred as by a scanner to 6 mm of the reference body, whatever
        the spacing.

    Returns
    -------
    image : Volume
        float32 (z, y, x).
    labels : Volume
        uint8 (z, y, x) on the same grid; names in :data:`LABELS`, 0 is air.

    Raises
    ------
    VolumeError
        A shape, spacing or contrast that cannot be made.
    """
    if len(shape) != 3 or min(shape) < 8:
        raise VolumeError(f"A phantom of shape {tuple(shape)} cannot be made; use 8 or more each.")
    if contrast not in get_args(Contrast):
        raise VolumeError(f"There is no phantom contrast '{contrast}'; use ct, t1, t2 or pet.")
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (3,))
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise VolumeError(f"A phantom cannot have a spacing of {spacing_mm} mm.")
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    # Anatomy and appearance draw from separate streams, so that contrasts share the anatomy.
    anatomy, appearance = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2)
    )
    canvas = _torso(size, anatomy)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * spacing * (np.asarray(size) - 1)  # 0 mm in the middle
    image = Volume(
        _intensities(canvas.tissues, contrast, appearance),
        affine,
        name=f"phantom {seed} {contrast.upper()}",
        modality="mr" if contrast in ("t1", "t2") else contrast,
    )
    return image, Volume(canvas.labels, affine.copy(), name=f"phantom {seed} labels")
