"""Sub-volumes for training: which one is sample ``k`` is a pure function of the seed and ``k``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from napari_s2dc.errors import ConfigurationError
from s2dc_train.cached_scan import CachedScan, ScanArrays
from s2dc_train.synthetic import Synthesis

_CANDIDATES = 8
# First word of the seed of each random stream.
_ORDER_STREAM, _PLACE_STREAM = 0, 1


class SubVolumeDataset(Dataset[dict[str, Any]]):
    """Sub-volumes of cached scans, without end; no random state is kept anywhere.

    Parameters
    ----------
    scans : sequence of CachedScan
        Scans to draw from; a pass visits each once, in an order of its own.
    size : tuple of int
        Voxels (z, y, x) of a sub-volume.
    seed : int
        Not negative.
    foreground_fraction : float
        Share of foreground wanted; the best of a few candidate places is taken where none has it.
    synthesis : Synthesis, optional
        Which samples are made-up anatomies instead.
    """

    def __init__(
        self,
        scans: Sequence[CachedScan],
        size: tuple[int, int, int],
        *,
        seed: int = 0,
        foreground_fraction: float = 0.0,
        synthesis: Synthesis | None = None,
    ) -> None:
        if seed < 0:
            raise ConfigurationError(f"The seed {seed} is negative.")
        self.scans = list(scans)
        self.size = size
        self.seed = seed
        self.foreground_fraction = foreground_fraction
        self.synthesis = synthesis or Synthesis()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample ``index``, a global counter.

        Returns
        -------
        dict
            ``image`` float32 (1, Z, Y, X) in [0, 1], or (3, Z, Y, X), as each view sees it, with
            `cross_contrast`; ``valid`` and ``foreground`` bool (Z, Y, X); ``volume`` position
            in ``scans``, -1 when made up; ``sample`` the index; ``start`` LongTensor (3), first
            voxel (z, y, x), negative where padding comes first.
        """
        if self.synthesis.holds(index):
            return self.synthesis.item(self.size, index)
        passes, position = divmod(index - self.synthesis.before(index), len(self.scans))
        volume = int(_order(self.seed, passes, len(self.scans))[position])
        scan = self.scans[volume]
        generator = np.random.default_rng([_PLACE_STREAM, self.seed, index])
        arrays = scan.open()
        item = self._item(arrays, volume, index, self._place(scan, arrays, generator))
        item["image"] = item["image"].expand(self.synthesis.channels, *self.size)
        return item

    def centred(self, volume: int) -> dict[str, Any]:
        """Return the sub-volume round the middle of a scan's foreground; padding is even."""
        scan = self.scans[volume]
        start = []
        for axis, side in enumerate(self.size):
            spare = scan.shape[axis] - side
            low, high = (corner[axis] for corner in scan.foreground_box)
            middle = (low + high - side) // 2
            start.append(spare // 2 if spare <= 0 else min(max(middle, 0), spare))
        return self._item(scan.open(), volume, volume, start)

    def _item(
        self, arrays: ScanArrays, volume: int, sample: int, start: Sequence[int]
    ) -> dict[str, Any]:
        cut = arrays.cut(start, self.size)
        return {
            "image": torch.from_numpy(cut["image"])[None],
            "valid": torch.from_numpy(cut["valid"]),
            "foreground": torch.from_numpy(cut["foreground"]),
            "volume": volume,
            "sample": sample,
            "start": torch.tensor(start, dtype=torch.long),
        }

    def _place(
        self, scan: CachedScan, arrays: ScanArrays, generator: np.random.Generator
    ) -> list[int]:
        best: tuple[float, list[int]] = (-1.0, [0, 0, 0])
        for candidate in range(_CANDIDATES):
            # Half the candidates anywhere, then nearer to the foreground.
            start = self._draw(scan, generator, near_foreground=candidate >= _CANDIDATES // 2)
            share = arrays.foreground_share(start, self.size)
            if share >= self.foreground_fraction:
                return start
            best = max(best, (share, start))
        return best[1]

    def _draw(
        self, scan: CachedScan, generator: np.random.Generator, *, near_foreground: bool
    ) -> list[int]:
        start = []
        for axis, side in enumerate(self.size):
            spare = scan.shape[axis] - side
            low, high = min(0, spare), max(0, spare)
            if near_foreground and spare > 0:
                first, last = (corner[axis] - side // 2 for corner in scan.foreground_box)
                low, high = min(max(first, low), high), max(min(last, high), low)
            start.append(int(generator.integers(low, high, endpoint=True)))
        return start


@lru_cache(maxsize=4)
def _order(seed: int, passes: int, volumes: int) -> np.ndarray:
    """Order of the volumes in one pass."""
    return np.random.default_rng([_ORDER_STREAM, seed, passes]).permutation(volumes)


class CounterSampler(DistributedSampler[int]):
    """Endless sample numbers of one rank, from any starting point.

    Step ``s`` of rank ``r`` gets ``start + (s * world_size + r) * batch_size`` and what follows it,
    so a run that resumes at ``start`` continues the sequence of the run before.

    It is a ``DistributedSampler`` in name so that Lightning does not put its own in its place.

    Parameters
    ----------
    start : int
        First global sample number.
    rank, world_size : int
        This process among all processes.
    batch_size : int
        Samples per step and process.
    """

    def __init__(
        self, start: int = 0, *, rank: int = 0, world_size: int = 1, batch_size: int = 1
    ) -> None:
        # The parent's constructor would ask for a process group and a finite data set.
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        for step in count():
            first = self.start + (step * self.world_size + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        raise TypeError("The sampler has no end.")

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order depends on the sample number alone."""
