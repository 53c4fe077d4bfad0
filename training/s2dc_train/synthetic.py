"""Made-up anatomies among the sub-volumes of the training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import floor
from typing import Any

import numpy as np
import torch

from napari_s2dc.volumes.random_anatomy import random_anatomy
from napari_s2dc.volumes.random_contrast import render

__all__ = ["Synthesis"]

VIEWS = 3
"""Renderings of a sub-volume: of view 1, view 2 and the contrastive view."""

# First word of the seed of each random stream; 0 and 1 are those of the scans.
_STREAM, _PLACES_STREAM = 2, 3
_BLOCK = 20
_CUT_PROBABILITY = 0.25


@dataclass(frozen=True)
class Synthesis:
    """How many samples are made up, and how.

    Parameters
    ----------
    share : float
        Of the samples, 0 to 1; as many in every block of 20, in an order of its own, so that no
        process and no logged step meets one kind alone.
    cross_contrast : bool
        Render every view in a contrast of its own.
    seed : int
        Seed of the run.
    """

    share: float = 0.0
    cross_contrast: bool = False
    seed: int = 0

    @property
    def channels(self) -> int:
        """Renderings of every sub-volume: one for each view where contrasts differ."""
        return VIEWS if self.share and self.cross_contrast else 1

    def before(self, index: int) -> int:
        """Count the made-up samples before sample `index`."""
        block, place = divmod(index, _BLOCK)
        first = floor(block * _BLOCK * self.share)
        return first + int(self._made_up(block)[:place].sum())

    def holds(self, index: int) -> bool:
        """Whether sample `index` is made up."""
        block, place = divmod(index, _BLOCK)
        return bool(self._made_up(block)[place])

    def _made_up(self, block: int) -> np.ndarray:
        first, last = (floor(edge * _BLOCK * self.share) for edge in (block, block + 1))
        return _order(self.seed, block) < last - first

    def item(self, size: tuple[int, int, int], index: int) -> dict[str, Any]:
        """Make sample `index`, a pure function of it and the seed.

        Parameters
        ----------
        size : tuple of int
            Voxels (z, y, x).
        index : int
            Global number of the sample.

        Returns
        -------
        dict
            As from :class:`s2dc_train.subvolumes.SubVolumeDataset`, ``image`` of `channels`,
            ``volume`` -1 and ``start`` 0.
        """
        random = np.random.default_rng([_STREAM, self.seed, index])
        regions = random_anatomy(size, random)
        valid = np.ones(size, bool)
        if random.random() < _CUT_PROBABILITY:  # a field of view that ends within
            axis = int(random.integers(3))
            end = int(random.uniform(0.5, 1.0) * size[axis])
            valid[(slice(None),) * axis + (slice(end, None),)] = False
        renderings = [render(regions, random) for _ in range(self.channels)]
        image = np.stack(renderings) * valid
        return {
            "image": torch.from_numpy(image),
            "valid": torch.from_numpy(valid),
            "foreground": torch.from_numpy((regions > 0) & valid),
            "volume": -1,
            "sample": index,
            "start": torch.zeros(3, dtype=torch.long),
        }


@lru_cache(maxsize=4)
def _order(seed: int, block: int) -> np.ndarray:
    """Order of the places of one block."""
    return np.random.default_rng([_PLACES_STREAM, seed, block]).permutation(_BLOCK)
