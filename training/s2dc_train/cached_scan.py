"""One preprocessed scan on disk, cut through memory maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_s2dc.errors import VolumeError
from s2dc_train.sources import ScanEntry

BYTES_PER_VOXEL = 4  # image 2, foreground 1, labels 1
STEPS = 65535  # stored steps of the intensity range [0, 1]


@dataclass(frozen=True)
class ScanArrays:
    """Memory maps of one cached scan, all (z, y, x)."""

    image: np.ndarray
    foreground: np.ndarray
    labels: np.ndarray | None

    def cut(self, start: Sequence[int], size: Sequence[int]) -> dict[str, np.ndarray]:
        """Cut a sub-volume; what lies outside the scan is padding.

        Parameters
        ----------
        start : sequence of int
            First voxel (z, y, x); negative where padding comes first.
        size : sequence of int
            Voxels (z, y, x).

        Returns
        -------
        dict of numpy.ndarray
            ``image`` float32 in [0, 1], 0 in padding; ``valid`` bool, False in padding;
            ``foreground`` bool; ``labels`` int32 where the scan has them. All of shape ``size``.
        """
        source, target = _overlap(start, size, self.image.shape)
        image = np.zeros(size, np.float32)
        np.multiply(self.image[source], np.float32(1 / STEPS), out=image[target])
        valid = np.zeros(size, bool)
        valid[target] = True
        foreground = np.zeros(size, bool)
        foreground[target] = self.foreground[source]
        cut = {"image": image, "valid": valid, "foreground": foreground}
        if self.labels is not None:
            cut["labels"] = np.zeros(size, np.int32)
            cut["labels"][target] = self.labels[source]
        return cut

    def foreground_share(self, start: Sequence[int], size: Sequence[int]) -> float:
        """Estimate the share of a sub-volume that is foreground, from a lattice of its voxels."""
        source, _ = _overlap(start, size, self.foreground.shape)
        step = max(1, min(size) // 16)
        inside = float(np.prod([part.stop - part.start for part in source]) / np.prod(size))
        sample = self.foreground[tuple(slice(part.start, part.stop, step) for part in source)]
        return float(sample.mean()) * inside


def _overlap(
    start: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices into the scan and into the sub-volume where both overlap."""
    first = [max(0, begin) for begin in start]
    last = [min(n, begin + side) for begin, side, n in zip(start, size, shape, strict=True)]
    source = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    target = tuple(slice(a - s, b - s) for a, b, s in zip(first, last, start, strict=True))
    return source, target


@dataclass(frozen=True)
class CachedScan:
    """One preprocessed scan on disk.

    Parameters
    ----------
    entry : ScanEntry
        The files it came from.
    folder : pathlib.Path
        Folder of the cache entry.
    shape, spacing_mm : tuple
        Voxels and mm along (z, y, x) after resampling.
    preset : str
        Intensity preset that was applied.
    intensity : tuple of float
        Least and greatest value in the file.
    foreground_box : tuple
        First and one-past-last foreground voxel along (z, y, x).
    has_labels : bool
        Whether a label map lies beside the image.
    label_problem : str
        Why the label map was left out; empty when it was not.
    """

    entry: ScanEntry
    folder: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    preset: str
    intensity: tuple[float, float]
    foreground_box: tuple[tuple[int, int, int], tuple[int, int, int]]
    has_labels: bool
    label_problem: str

    def open(self) -> ScanArrays:
        """Map the files; nothing is read until it is cut, and no file stays open afterwards.

        Raises
        ------
        VolumeError
            When the cache was deleted or damaged while in use.
        """
        try:
            return ScanArrays(
                image=self._map("image"),
                foreground=self._map("foreground"),
                labels=self._map("labels") if self.has_labels else None,
            )
        except (OSError, ValueError) as error:
            raise VolumeError(
                f"The cache entry {self.folder} of {self.entry.image} can no longer be read.",
                "Start again (with --ckpt last to resume): it will be computed anew.",
            ) from error

    def _map(self, name: str) -> np.ndarray:
        array: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array
