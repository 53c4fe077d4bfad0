"""Checked readings of the data settings."""

from __future__ import annotations

from napari_s2dc.errors import ConfigurationError
from napari_s2dc.volumes.preprocess import PRESETS
from s2dc_train.config import DataConfig


def subvolume_size(config: DataConfig) -> tuple[int, int, int]:
    """Voxels (z, y, x) of one sub-volume: grid times crop side."""
    z, y, x = (cells * config.crop_size for cells in config.grid)
    return z, y, x


def check_settings(config: DataConfig) -> None:
    """Raise ConfigurationError, naming the field, when a data setting is out of range."""
    demands = [
        (
            config.preset == "auto" or config.preset in PRESETS,
            f'preset "{config.preset}" is none of auto, {", ".join(PRESETS)}',
        ),
        (
            len(config.spacing_mm) in (0, 3) and all(mm > 0 for mm in config.spacing_mm),
            "spacing_mm must be empty or three positive numbers (z, y, x)",
        ),
        (
            len(config.grid) == 3 and all(cells >= 1 for cells in config.grid),
            "grid must be three positive whole numbers (z, y, x)",
        ),
        (config.crop_size >= 1, "crop_size must be positive"),
        (0 <= config.foreground_fraction <= 1, "foreground_fraction must be between 0 and 1"),
        (0 <= config.synthetic_share <= 1, "synthetic_share must be between 0 and 1"),
        (config.validation_volumes >= 1, "validation_volumes must be at least 1"),
        (config.batch_size >= 1, "batch_size must be at least 1"),
        (config.workers >= 0, "workers must not be negative"),
    ]
    for holds, sentence in demands:
        if not holds:
            raise ConfigurationError(f"Setting data.{sentence}.")


def spacing_of(config: DataConfig) -> tuple[float, float, float] | None:
    """Spacing (z, y, x) in mm to resample to; None keeps each scan's own."""
    if not config.spacing_mm:
        return None
    z, y, x = (float(value) for value in config.spacing_mm)
    return z, y, x
