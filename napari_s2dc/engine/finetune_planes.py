"""Planes of class probabilities become classes and uncertainty, on whatever grid is wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["ProbabilityPlanes"]

Box = tuple[slice, slice, slice]


class ProbabilityPlanes:
    """Takes planes one after the other and keeps none longer than it has to.

    Parameters
    ----------
    outputs : int
        Background and classes.
    places : sequence of 3 np.ndarray
        Where the wanted voxels lie along z, y and x, ascending, in voxels of the image.
    box : tuple of slice, optional
        Part of the image that planes come of; what lies outside is background. Nothing comes when
        left out.

    Attributes
    ----------
    found : np.ndarray
        uint8, or uint16 for many outputs: number of the most probable output; of the wanted shape.
    uncertainty : np.ndarray
        float16, from 0 (sure) to 1 (all outputs are as probable).
    """

    def __init__(self, outputs: int, places: Sequence[np.ndarray], box: Box | None) -> None:
        shape = tuple(len(along) for along in places)
        self.found = np.zeros(shape, np.min_scalar_type(outputs - 1))
        self.uncertainty = np.zeros(shape, np.float16)
        self._scale = 1 / math.log(max(2, outputs))
        self._next = self._taken = 0
        self._held: Tensor | None = None
        if box is not None:
            self._targets, local = zip(
                *(_within(along, part) for along, part in zip(places, box, strict=True)),
                strict=True,
            )
            self._z = local[0]
            sides = [part.stop - part.start for part in box]
            self._y, self._x = (
                _linear(along, side) for along, side in zip(local[1:], sides[1:], strict=True)
            )

    def add(self, planes: Tensor) -> None:
        """Take the next planes.

        Parameters
        ----------
        planes : Tensor (outputs, n, Y, X)
            Probabilities, as long and wide as the box.
        """
        planes = _spread(planes.float(), self._y, self._x)
        if self._held is not None:
            planes = torch.cat([self._held, planes], dim=1)
        first = self._taken - (self._held is not None)
        self._taken = first + planes.shape[1]
        self._held = planes[:, -1:].clone()
        while self._next < len(self._z) and self._z[self._next] <= self._taken - 1:
            self._judge(planes, first)

    def close(self) -> None:
        """Say that no planes come any more."""
        while self._held is not None and self._next < len(self._z):
            self._judge(self._held, self._taken - 1)

    def _judge(self, planes: Tensor, first: int) -> None:
        """Decide the next wanted plane, from planes of which the first has a number."""
        place = min(max(self._z[self._next] - first, 0.0), planes.shape[1] - 1.0)
        low = int(place)
        plane = planes[:, low]
        if place > low:
            plane = torch.lerp(plane, planes[:, low + 1], place - low)
        entropy = torch.special.entr(plane).sum(0) * self._scale
        z, y, x = self._targets
        there = (z.start + self._next, y, x)
        self.found[there] = plane.argmax(0).numpy()
        self.uncertainty[there] = entropy.clamp(0, 1).numpy()
        self._next += 1


def _within(places: np.ndarray, part: slice) -> tuple[slice, np.ndarray]:
    """Which places lie in a part of the image, and where in it, from its first voxel."""
    local = places - part.start
    side = part.stop - part.start
    inside = np.flatnonzero((local >= -0.5) & (local < side - 0.5))
    if not len(inside):
        return slice(0, 0), local[:0]
    return slice(int(inside[0]), int(inside[-1]) + 1), local[inside]


def _linear(places: np.ndarray, side: int) -> Tensor | None:
    """Matrix (n, side) that interpolates at places; None where it would change nothing."""
    if len(places) == side and np.abs(places - np.arange(side)).max(initial=0.0) < 1e-6:
        return None
    places = places.clip(0, side - 1)
    low = np.minimum(places.astype(int), max(0, side - 2))
    matrix = np.zeros((len(places), side), np.float32)
    rows = np.arange(len(places))
    matrix[rows, low] = 1 - (places - low)
    matrix[rows, np.minimum(low + 1, side - 1)] += places - low
    return torch.from_numpy(matrix)


def _spread(planes: Tensor, along_y: Tensor | None, along_x: Tensor | None) -> Tensor:
    if along_x is not None:
        planes = planes @ along_x.T
    return planes if along_y is None else along_y @ planes
