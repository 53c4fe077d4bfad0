"""Scans with labels to learn from: which classes there are, and what every voxel is to become."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_s2dc.engine.evaluate import require_labels, require_same_grid
from napari_s2dc.engine.fewshot_settings import FewshotSettings, SegmentationClass
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "UNLABELLED",
    "LabelledScan",
    "classes_in",
    "facts_of",
    "keep_strokes",
    "targets_of",
    "voxels_of_labels",
]

UNLABELLED = -1
"""Target of a voxel that nothing is learned from."""

_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its labels on one grid.

    Parameters
    ----------
    image : Volume
        Scan with raw intensities.
    labels : Volume
        Integers: strokes, or a complete mask.

    Raises
    ------
    S2DCError
        The grids differ, or the labels are no integers of at least 0.
    """

    image: Volume
    labels: Volume

    def __post_init__(self) -> None:
        require_same_grid(self.image, self.labels)
        require_labels(self.labels)


def facts_of(image: Volume) -> dict[str, Any]:
    """Note which scan was learned from: its name, hash of its voxels and spacing in mm."""
    return {
        "name": image.name,
        "hash": image.voxels_hash(),
        "spacing_mm": list(image.spacing_mm),
    }


def voxels_of_labels(labels: np.ndarray) -> dict[int, int]:
    """Count the voxels of every label but 0.

    Parameters
    ----------
    labels : np.ndarray
        Integers of at least 0, (z, y, x).

    Returns
    -------
    dict of int to int
        By label, ascending.
    """
    counts: dict[int, int] = {}
    small = labels.dtype.kind == "b" or (labels.size > 0 and int(labels.max()) < 2**16)
    for plane in labels:  # of all at once, numpy would make a copy of eight bytes a voxel
        if small:
            numbers = np.bincount(plane.ravel().astype(np.int64, copy=False))
            found = np.flatnonzero(numbers)
            numbers = numbers[found]
        else:
            found, numbers = np.unique(plane[plane != 0], return_counts=True)
        for label, number in zip(found.tolist(), numbers.tolist(), strict=True):
            counts[label] = counts.get(label, 0) + number
    counts.pop(0, None)
    return dict(sorted(counts.items()))


def keep_strokes(labels: Volume, resampled: Volume) -> Volume:
    """Paint again what resampling has dropped of strokes.

    The nearest voxel of a larger one may lie beside a thin stroke.

    Parameters
    ----------
    labels : Volume
        Integers; 0 is unlabelled.
    resampled : Volume
        The same on another grid.

    Returns
    -------
    Volume
        Where resampling left a voxel unlabelled, it has the label of one that lies in it. Those
        outside of the grid, by more than its rounding, are left out.
    """
    array = resampled.array.copy()
    last = np.asarray(array.shape) - 1
    for number, plane in enumerate(labels.array):  # all at once may be many million places
        painted = np.argwhere(plane)
        voxels = np.insert(painted, 0, number, axis=1)
        places = np.rint(resampled.to_vox(labels.to_mm(voxels))).astype(int)
        inside = ((places >= -1) & (places <= last + 1)).all(axis=1)
        at = tuple(places[inside].clip(0, last).T)
        dropped = resampled.array[at] == 0
        array[tuple(axis[dropped] for axis in at)] = plane[tuple(painted[inside][dropped].T)]
    return resampled.with_array(array)


def classes_in(
    scans: Sequence[LabelledScan],
    settings: FewshotSettings,
    *,
    names: Mapping[int, str] | None = None,
    colours: Mapping[int, tuple[float, float, float]] | None = None,
) -> tuple[SegmentationClass, ...]:
    """List the classes that labels hold.

    Parameters
    ----------
    scans : sequence of LabelledScan
        All that are learned from.
    settings : FewshotSettings
        Say what is background.
    names, colours : mapping, optional
        Of labels; others are called after their number, and get a colour by it.

    Returns
    -------
    tuple of SegmentationClass
        By label, background left out.

    Raises
    ------
    S2DCError
        There is nothing to tell apart: nothing is labelled, or one class and no background.
    """
    found: set[int] = set()
    for scan in scans:
        found |= set(voxels_of_labels(scan.labels.array))
    if not found:
        raise S2DCError(
            "No voxel is labelled.",
            "Paint at least two classes, one of them may be the background.",
        )
    complete = settings.zero == "background"
    background = None if complete else settings.background
    if background is not None and background not in found:
        raise ConfigurationError(
            f"Label {background} is to mean background, but no voxel has it.",
            f"Paint some, or choose one of {', '.join(map(str, sorted(found)))}.",
        )
    labels = sorted(found - {background})
    if not labels:
        raise S2DCError(
            f"Only label {background} is painted, which means background.",
            "Paint a structure with another label.",
        )
    if len(labels) == 1 and background is None and not complete:
        raise S2DCError(
            f"Only label {labels[0]} is painted, so there is nothing to tell it from.",
            "Paint what lies around it with another label and choose that as background.",
        )
    names, colours = names or {}, colours or {}
    return tuple(
        SegmentationClass(
            label=label,
            name=names.get(label) or f"class {label}",
            colour=colours.get(label) or _colour_of(label),
        )
        for label in labels
    )


def _colour_of(label: int) -> tuple[float, float, float]:
    """Colour of a label, far from those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1.0, 0.65, 0.95)
    return round(red, 3), round(green, 3), round(blue, 3)


def targets_of(
    labels: np.ndarray, classes: Sequence[SegmentationClass], settings: FewshotSettings
) -> np.ndarray:
    """Translate labels to what is learned.

    Parameters
    ----------
    labels : np.ndarray
        Integers of any shape.
    classes : sequence of SegmentationClass
        As of :func:`classes_in`; labels of other classes count as unlabelled.
    settings : FewshotSettings
        Say what 0 and background mean.

    Returns
    -------
    np.ndarray
        int16, same shape: :data:`UNLABELLED`, 0 for background, or 1 + the place of the class.
    """
    complete = settings.zero == "background"
    background = 0 if complete else settings.background
    known = [one.label for one in classes] + ([] if background is None else [background])
    values = list(range(1, len(classes) + 1)) + ([] if background is None else [0])
    order = np.argsort(known)
    sorted_labels, sorted_values = np.asarray(known)[order], np.asarray(values, np.int16)[order]
    if not complete:  # most voxels are 0, which is quick to tell
        targets = np.full(labels.shape, UNLABELLED, np.int16)
        painted = labels != 0
        targets[painted] = _translate(labels[painted], sorted_labels, sorted_values)
        return targets
    return _translate(labels, sorted_labels, sorted_values)


def _translate(labels: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    places = np.searchsorted(known, labels).clip(max=len(known) - 1)
    return np.where(known[places] == labels, values[places], np.int16(UNLABELLED))
