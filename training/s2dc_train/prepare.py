"""From the file of a scan to the arrays that are cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.errors import VolumeError
from napari_s2dc.volumes.io import check_values, read_volume
from napari_s2dc.volumes.preprocess import foreground_mask, normalize, preset_of_scan, resample
from napari_s2dc.volumes.volume import Volume
from s2dc_train.cached_scan import STEPS
from s2dc_train.sources import ScanEntry

Spacing = tuple[float, float, float]

# What a reader raises for a file it cannot use; anything else is a defect of ours and must show.
READ_ERRORS = (VolumeError, OSError, EOFError, MemoryError)


def prepare_scan(
    entry: ScanEntry, preset: str, spacing_mm: Spacing | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read, check, resample, mask and normalise one scan.

    Parameters
    ----------
    entry : ScanEntry
        Files of the scan.
    preset : str
        Intensity preset or ``auto``.
    spacing_mm : tuple of float or None
        Spacing (z, y, x) to resample to; None keeps the scan's own.

    Returns
    -------
    arrays : dict of numpy.ndarray
        (z, y, x): ``image`` uint16, :data:`s2dc_train.cached_scan.STEPS` steps of [0, 1];
        ``foreground`` bool; ``labels`` integers where there is a usable label map.
    facts : dict
        Plain values that describe the scan, for the cache entry.

    Raises
    ------
    VolumeError
        The scan cannot be read or holds no usable values; nothing is replaced by a constant.
    """
    volume = read_volume(entry.image)
    check_values(volume)
    intensity = float(volume.array.min()), float(volume.array.max())
    preset = choose_preset(volume, preset)
    labels, label_problem = _labels(entry, volume, spacing_mm)
    if spacing_mm:
        volume = resample(volume, spacing_mm)
    foreground = foreground_mask(volume.array)
    image = normalize(volume.array, preset, foreground)
    image = np.rint(image * np.float32(STEPS)).astype(np.uint16)
    if image.min() == image.max():
        raise VolumeError(
            f"{entry.image} has one value everywhere under the preset {preset}.",
            "Choose another --data.preset.",
        )
    arrays = {"image": image, "foreground": foreground}
    if labels is not None:
        arrays["labels"] = labels
    filled = [np.flatnonzero(foreground.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    facts = {
        "source": str(entry.image),
        "shape": list(volume.array.shape),
        "spacing_mm": list(volume.spacing_mm),
        "preset": preset,
        "intensity": intensity,
        "foreground_box": [[int(i[0]) for i in filled], [int(i[-1]) + 1 for i in filled]],
        "label_problem": label_problem,
    }
    return arrays, facts


def _labels(
    entry: ScanEntry, volume: Volume, spacing_mm: Spacing | None
) -> tuple[np.ndarray | None, str]:
    """Label map on the resampled grid, or None and why; the scan itself is used either way."""
    if entry.label is None:
        return None, ""
    try:
        labels = read_volume(entry.label, labels=True)
    except READ_ERRORS as error:
        return None, reason(error, entry.label)
    if labels.array.shape != volume.array.shape:
        return None, f"its size {labels.array.shape} differs from the scan's {volume.array.shape}"
    corner = np.array([*volume.array.shape, 1.0])
    shift_mm = max(
        float(np.linalg.norm((labels.affine - volume.affine) @ point))
        for point in (np.array([0.0, 0.0, 0.0, 1.0]), corner)
    )
    if shift_mm > 0.5 * max(volume.spacing_mm):
        return None, f"its grid lies {shift_mm:.3g} mm off the scan's"
    if spacing_mm:
        # With the scan's own affine, or rounding could give it another size.
        labels = resample(replace(labels, affine=volume.affine), spacing_mm, labels=True)
    low, high = int(labels.array.min()), int(labels.array.max())
    return labels.array.astype(np.uint8 if low >= 0 and high < 256 else np.int32), ""


def choose_preset(volume: Volume, wanted: str) -> str:
    """Return the preset to apply; ``auto`` follows the file's own word, then its values."""
    return preset_of_scan(volume) if wanted == "auto" else wanted


def reason(error: BaseException, path: Path) -> str:
    """Say in one sentence, to stand after the path, why a file cannot be used."""
    if isinstance(error, VolumeError):
        return error.sentence.removeprefix(str(path)).strip()
    if isinstance(error, MemoryError):
        return "it does not fit into memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
