"""Compare label maps with references: Dice, 95 % Hausdorff distance and surface Dice by class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "ClassScore",
    "Evaluation",
    "evaluate_labels",
    "may_be_labels",
    "mean_of",
    "require_labels",
    "require_same_grid",
    "require_tolerance",
]

_SAME_PLACE_MM = 1e-3


@dataclass(frozen=True)
class ClassScore:
    """How well one class agrees.

    Parameters
    ----------
    label : int
        Its number.
    dice : float
        Twice the common voxels over the sum of both; 0 to 1.
    hd95_mm : float
        95th percentile of the distances between the two surfaces, in mm, the larger of both
        directions; NaN where one of the two is empty.
    surface_dice : float
        Share of both surfaces, by area, that lies within the tolerance of the other one; 0 to 1.
    voxels, reference_voxels : int
        Size in the labels and in the reference.
    """

    label: int
    dice: float
    hd95_mm: float
    surface_dice: float
    voxels: int
    reference_voxels: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Give the figures for JSON, which knows no NaN."""
        return {
            "label": self.label,
            "dice": self.dice,
            "hd95_mm": None if np.isnan(self.hd95_mm) else self.hd95_mm,
            "surface_dice": self.surface_dice,
            "voxels": self.voxels,
            "reference_voxels": self.reference_voxels,
        }


@dataclass(frozen=True)
class Evaluation:
    """How well a label map agrees with a reference.

    Parameters
    ----------
    classes : tuple of ClassScore
        Every class that either of them has, background left out, by number.
    tolerance_mm : float
        How far surfaces may be apart and still count as equal in the surface Dice.
    """

    classes: tuple[ClassScore, ...]
    tolerance_mm: float

    @property
    def mean_dice(self) -> float:
        """Mean over the classes; one that only one of the two has counts as 0."""
        return mean_of([score.dice for score in self.classes])

    @property
    def mean_hd95_mm(self) -> float:
        """Mean over the classes that both have."""
        return mean_of([score.hd95_mm for score in self.classes])

    @property
    def mean_surface_dice(self) -> float:
        """Mean over the classes; one that only one of the two has counts as 0."""
        return mean_of([score.surface_dice for score in self.classes])

    @property
    def missed(self) -> tuple[int, ...]:
        """Classes that only one of the two has; they have no distance."""
        return tuple(score.label for score in self.classes if np.isnan(score.hd95_mm))


def mean_of(values: Sequence[float]) -> float:
    """Mean of the values that are known; NaN when none is."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def evaluate_labels(
    found: Volume, reference: Volume, tolerance_mm: float | None = None
) -> Evaluation:
    """Compare two label maps.

    Parameters
    ----------
    found : Volume
        Labels to judge, integers; 0 is background.
    reference : Volume
        The truth, on the same grid.
    tolerance_mm : float, optional
        How far surfaces may be apart and still count as equal in the surface Dice; the longest
        side of a voxel when left out, so that a border one voxel off is right on every axis.

    Returns
    -------
    Evaluation

    Raises
    ------
    S2DCError
        Values are no labels, the grids differ, neither holds a class, or the tolerance is no
        distance.

    Notes
    -----
    MONAI's ``compute_dice``, ``compute_hausdorff_distance`` and ``compute_surface_dice`` (the last
    by area between voxels, as DeepMind's ``surface-distance`` has it), class by class within the
    box that holds both, so that many classes of a large scan do not need its memory many times.
    """
    for volume in (found, reference):
        require_labels(volume)
    require_same_grid(found, reference)
    if tolerance_mm is None:
        tolerance_mm = max(reference.spacing_mm)
    require_tolerance(tolerance_mm)
    labels = sorted(
        int(label)
        for label in np.union1d(np.unique(found.array), np.unique(reference.array))
        if label != 0
    )
    if not labels:
        raise S2DCError(
            f"Neither {found.name} nor {reference.name} holds a class other than background."
        )
    scores = tuple(_score(found, reference, label, tolerance_mm) for label in labels)
    return Evaluation(scores, tolerance_mm)


def require_tolerance(tolerance_mm: float) -> None:
    """Refuse a tolerance that is no distance.

    Raises
    ------
    ConfigurationError
        It is negative, infinite or NaN.
    """
    if not 0 <= tolerance_mm < np.inf:
        raise ConfigurationError(
            f"A tolerance of {tolerance_mm:g} mm makes no sense.", "Give 0 or more."
        )


def require_same_grid(one: Volume, other: Volume) -> None:
    """Refuse two volumes whose voxels do not lie in the same places.

    Raises
    ------
    S2DCError
        Shape or position differ.
    """
    if one.shape != other.shape:
        shapes = [" x ".join(map(str, volume.shape)) for volume in (one, other)]
        raise S2DCError(
            f"{_where(one)} has {shapes[0]} voxels and {_where(other)} {shapes[1]} voxels.",
            "Both must lie on one grid: resample one to the grid of the other.",
        )
    last = np.asarray(one.shape) - 1
    corners = np.array(np.meshgrid(*((0, n) for n in last))).reshape(3, -1).T
    away = np.linalg.norm(one.to_mm(corners) - other.to_mm(corners), axis=1).max()
    if away > max(_SAME_PLACE_MM, 0.1 * min(one.spacing_mm)):
        raise S2DCError(
            f"{_where(one)} and {_where(other)} lie up to {away:.3g} mm apart.",
            "Both must lie on one grid: resample one to the grid of the other.",
        )


def may_be_labels(array: np.ndarray) -> bool:
    """Whether all values are whole numbers of at least 0."""
    kind = array.dtype.kind
    return kind in "ub" or (kind == "i" and bool(array.min(initial=0) >= 0))


def require_labels(volume: Volume) -> None:
    """Refuse a volume that is no label map.

    Raises
    ------
    S2DCError
        Its values are no integers of at least 0.
    """
    if not may_be_labels(volume.array):
        raise S2DCError(
            f"{_where(volume)} holds values that are no labels.",
            "Labels are whole numbers of at least 0.",
        )


def _where(volume: Volume) -> str:
    return str(volume.path or volume.name)


def _score(found: Volume, reference: Volume, label: int, tolerance_mm: float) -> ClassScore:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    masks = [volume.array == label for volume in (found, reference)]
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    if not all(sizes):
        return ClassScore(label, 0.0, float("nan"), 0.0, sizes[0], sizes[1])
    either = masks[0] | masks[1]
    box = tuple(
        slice(int(places[0]), int(places[-1]) + 1)
        for axis in range(3)
        for places in [np.flatnonzero(either.any(tuple({0, 1, 2} - {axis})))]
    )
    # A border of background, or the surface at the edge of the box would be missed.
    one, other = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in masks)
    spacing = reference.spacing_mm
    with warnings.catch_warnings():
        # MONAI 1.6 uses an argument of its own that it has deprecated.
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        distance = compute_hausdorff_distance(
            one, other, include_background=True, percentile=95, spacing=spacing
        )
        surface = compute_surface_dice(
            one, other, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
        )
    dice = compute_dice(one, other)
    return ClassScore(label, float(dice), float(distance), float(surface), sizes[0], sizes[1])
