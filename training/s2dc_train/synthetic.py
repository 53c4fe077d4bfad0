"""Made-up anatomies among the sub-volumes of the training."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np
import torch

from napari_s2dc.volumes.random_anatomy import random_anatomy
from napari_s2dc.volumes.random_contrast import render

__all__ = ["VIEWS", "Synthesis"]

VIEWS = 3
"""Renderings of a sub-volume: of view 1, view 2 and the contrastive view."""

_STREAM = 2
_CUT_PROBABILITY = 0.25


@dataclass(frozen=True)
class Synthesis:
    """How many samples are made up, and how.

    Parameters
    ----------
    share : float
        Of the samples, 0 to 1; they are spread evenly among the others.
    cross_contrast : bool
        Render every view in a contrast of its own.
    """

    share: float = 0.0
    cross_contrast: bool = True

    def before(self, index: int) -> int:
        """Count the made-up samples before sample `index`."""
        return floor(index * self.share)

    def holds(self, index: int) -> bool:
        """Whether sample `index` is made up."""
        return self.before(index + 1) > self.before(index)

    def item(self, size: tuple[int, int, int], seed: int, index: int) -> dict[str, Any]:
        """Make sample `index`, a pure function of `seed` and `index`.

        Parameters
        ----------
        size : tuple of int
            Voxels (z, y, x).
        seed, index : int
            Seed of the run, global number of the sample.

        Returns
        -------
        dict
            As from :class:`s2dc_train.subvolumes.SubVolumeDataset`, ``image`` with one channel
            for each view (3, Z, Y, X), ``volume`` -1 and ``start`` 0.
        """
        random = np.random.default_rng([_STREAM, seed, index])
        regions = random_anatomy(size, random)
        valid = np.ones(size, bool)
        if random.random() < _CUT_PROBABILITY:  # a field of view that ends within
            axis = int(random.integers(3))
            end = int(random.uniform(0.5, 1.0) * size[axis])
            valid[(slice(None),) * axis + (slice(end, None),)] = False
        renderings = [render(regions, random) for _ in range(VIEWS if self.cross_contrast else 1)]
        image = np.stack(renderings) * valid
        return {
            "image": torch.from_numpy(image).expand(VIEWS, *size),
            "valid": torch.from_numpy(valid),
            "foreground": torch.from_numpy((regions > 0) & valid),
            "volume": -1,
            "sample": index,
            "start": torch.zeros(3, dtype=torch.long),
        }
