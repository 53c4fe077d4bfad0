"""Carry the labels of a matched scan to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from napari_s2dc.engine.alignment import Alignment, fit_alignment, smooth_displacement
from napari_s2dc.engine.match import Match
from napari_s2dc.volumes.volume import Volume

__all__ = ["Transfer", "TransferSettings", "fuse", "transfer_labels"]


@dataclass(frozen=True)
class TransferSettings:
    """How labels follow a match.

    Parameters
    ----------
    least_confidence : float
        Pairs below this are not used.
    smooth : bool
        Bend the affine map where the pairs agree that it should.
    smoothing : float
        Of the bending; 0 goes through every pair.
    """

    least_confidence: float = 0.2
    smooth: bool = True
    smoothing: float = 10.0


@dataclass(frozen=True)
class Transfer:
    """Labels of A on the grid of B.

    Parameters
    ----------
    labels : Volume
        On the grid of B.
    confidence : np.ndarray (Z, Y, X)
        0 to 1: how sure the match is near each voxel.
    alignment : Alignment
        From mm of B to mm of A.
    """

    labels: Volume
    confidence: np.ndarray
    alignment: Alignment


def _grid_mm(volume: Volume, step: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Positions in mm of every `step`-th voxel, and how many along each axis."""
    axes = [np.arange(0, side + step, step, dtype=np.float64) for side in volume.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return points @ volume.affine[:3, :3].T + volume.affine[:3, 3], tuple(map(len, axes))


def transfer_labels(
    match: Match, labels: Volume, target: Volume, settings: TransferSettings | None = None
) -> Transfer:
    """Carry labels from scan A of a match to scan B.

    Parameters
    ----------
    match : Match
        Of A with B.
    labels : Volume
        Label map on the grid of A.
    target : Volume
        Scan B; the result lies on its grid.
    settings : TransferSettings, optional
        Defaults when left out.

    Returns
    -------
    Transfer

    Raises
    ------
    S2DCError
        Too few confident pairs.

    Notes
    -----
    The affine map of the confident pairs (RANSAC), bent by a regularised thin-plate spline of what
    the pairs that agree with it leave over.
    """
    from scipy import ndimage

    settings = settings or TransferSettings()
    pairs = match.pairs().best(least=settings.least_confidence)
    side_mm = match.b.stride * float(np.mean(match.b.spacing_mm))
    alignment = fit_alignment(pairs.mm_b, pairs.mm_a, tolerance_mm=1.5 * side_mm)
    step = max(match.b.stride // 2, 1)
    points, counts = _grid_mm(target, step)
    mapped = alignment.apply(points)
    if settings.smooth:
        inside = alignment.inliers
        left_over = pairs.mm_a[inside] - alignment.apply(pairs.mm_b[inside])
        mapped = mapped + smooth_displacement(
            pairs.mm_b[inside], left_over, points, smoothing=settings.smoothing
        )
    inverse = np.linalg.inv(labels.affine)
    coarse = (mapped @ inverse[:3, :3].T + inverse[:3, 3]).reshape(*counts, 3)
    # From every step-th voxel to every voxel.
    where = np.meshgrid(*(np.arange(side) / step for side in target.shape), indexing="ij")
    source = np.stack(
        [ndimage.map_coordinates(coarse[..., axis], where, order=1) for axis in range(3)]
    )
    carried = ndimage.map_coordinates(labels.array, source, order=0, mode="grid-constant", cval=0)
    return Transfer(
        labels=Volume(carried, target.affine, original=target.original, name=labels.name),
        confidence=_confidence(match, target),
        alignment=alignment,
    )


def _confidence(match: Match, target: Volume) -> np.ndarray:
    from scipy import ndimage

    _, unmatched = match.unmatched()
    sure = np.nan_to_num(1 - unmatched.numpy(), nan=0.0).clip(0, 1)
    stride = match.b.stride
    where = np.meshgrid(
        *(
            (np.arange(side) - first + 0.5) / stride - 0.5
            for side, first in zip(target.shape, match.b.offset_vox, strict=True)
        ),
        indexing="ij",
    )
    result: np.ndarray = ndimage.map_coordinates(sure, where, order=1, mode="nearest")
    return result.astype(np.float32)


def fuse(transfers: Sequence[Transfer]) -> Transfer:
    """Fuse the labels that several atlases gave one scan: each voxel votes, weighed by confidence.

    Parameters
    ----------
    transfers : sequence of Transfer
        On the same grid.

    Returns
    -------
    Transfer
        ``confidence`` is the winner's share of the votes; ``alignment`` the first one's.
    """
    arrays = [transfer.labels.array for transfer in transfers]
    votes = np.zeros(arrays[0].shape, np.float32)
    total = np.zeros_like(votes)
    winner = np.zeros_like(arrays[0])
    for weight in (transfer.confidence for transfer in transfers):
        total += weight + 1e-3
    for label in np.unique(np.concatenate([np.unique(array) for array in arrays])):
        support = sum(
            (array == label) * (transfer.confidence + 1e-3)
            for array, transfer in zip(arrays, transfers, strict=True)
        )
        better = support > votes
        winner[better] = label
        votes = np.where(better, support, votes)
    first = transfers[0]
    labels = Volume(winner, first.labels.affine, original=first.labels.original, name="fused")
    return Transfer(labels, (votes / total).astype(np.float32), first.alignment)
