"""Carry the labels of a matched scan to another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.alignment import LEAST_CONFIDENCE, Alignment, smooth_displacement
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.match import Match, Pairs
from napari_s2dc.engine.match_checks import align_match, kind_of
from napari_s2dc.engine.progress import Steps
from napari_s2dc.engine.registration import Registration, RegistrationSettings, register
from napari_s2dc.engine.scan_agreement import grid_places, is_inside, sample
from napari_s2dc.volumes.volume import Volume

__all__ = ["Transfer", "TransferSettings", "fuse", "transfer_labels"]

_VOXELS_AT_ONCE = 2**20
_LEAST_CORRELATION = 0.42
"""Squared local correlation of intensities after the registration. Measured on right places:
0.52 to 0.75 for mouse brains, hippocampi and thoraces, 0.47 to 0.54 for phantoms as CT and as T2,
0.83 and more for phantoms as CT; on wrong ones 0.08 to 0.38."""
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class TransferSettings:
    """How labels follow a match.

    Parameters
    ----------
    least_confidence : float
        Pairs below this are not used for the start.
    bend_by_pairs : bool
        Bend the start by a thin-plate spline of what the pairs that agree with it leave over.
    smoothing : float
        Of that bending, whose unit of length is a patch of B; 0 goes through every pair.
    registration : RegistrationSettings
        How the start is refined; without any steps labels follow the pairs alone. Between kinds of
        scans, such as CT and MR, the map of an aligned match only bends.
    """

    least_confidence: float = LEAST_CONFIDENCE
    bend_by_pairs: bool = False
    smoothing: float = 10.0
    registration: RegistrationSettings = field(default_factory=RegistrationSettings)


@dataclass(frozen=True)
class Transfer:
    """Labels of A on the grid of B.

    Parameters
    ----------
    labels : Volume
        On the grid of B.
    confidence : np.ndarray (Z, Y, X)
        0 to 1: the patch's matched mass, times how well the intensities round the voxel agree,
        times the label's share of the voxel.
    alignment : Alignment
        From mm of A to mm of B: the refinement started at its inverse.
    doubt : str
        A sentence where the intensities hardly agree after the bending; "" where they do, without
        bending, and of fused labels.
    """

    labels: Volume
    confidence: np.ndarray
    alignment: Alignment
    doubt: str = ""


def transfer_labels(
    match: Match,
    labels: Volume,
    image_a: Volume,
    image_b: Volume,
    settings: TransferSettings | None = None,
) -> Steps[Transfer]:
    """Carry labels from scan A of a match to scan B.

    Parameters
    ----------
    match : Match
        Of A with B.
    labels : Volume
        Label map on the grid of A.
    image_a, image_b : Volume
        The scans that were embedded, with the same voxels or more; the result lies on the grid of
        `image_b`.
    settings : TransferSettings, optional
        Defaults when left out.

    Yields
    ------
    Progress
        Steps of the refinement.

    Returns
    -------
    Transfer

    Raises
    ------
    S2DCError
        Too few confident pairs, or none agree on a map.

    Notes
    -----
    The map of :func:`napari_s2dc.engine.match_checks.align_match`, the other way round, is where
    :func:`napari_s2dc.engine.registration.register` starts. Each voxel of B takes the label with
    the largest share of the point in A, interpolated linearly.
    """
    settings = settings or TransferSettings()
    chosen = match.pairs().best(least=settings.least_confidence, mutual=True)
    refinement = settings.registration
    alignment = align_match(match, least=settings.least_confidence)
    if match.matrix is not None and kind_of(image_a) != kind_of(image_b):
        # A coarse grid would pull edges of unlike tissues onto each other again.
        refinement = replace(refinement, affine_steps=0)
    start = np.linalg.inv(alignment.matrix)

    def bending(points_mm: np.ndarray) -> np.ndarray:
        agreeing = chosen.of(alignment.inliers)
        return _left_over(agreeing, start, match.b, points_mm, settings.smoothing)

    registration = yield from register(
        (match.a, match.b),
        (image_a, image_b),
        start,
        bending=bending if settings.bend_by_pairs else None,
        settings=refinement,
    )
    found, share = _carry(registration, labels)
    doubt = ""
    if refinement.bending_steps and registration.correlation < _LEAST_CORRELATION:
        doubt = (
            f"The intensities of {match.a.name} and {match.b.name} hardly agree where the labels "
            f"were laid ({registration.correlation:.2f}; right places have 0.47 and more): "
            "look before you use them."
        )
    return Transfer(
        labels=Volume(found, image_b.affine, original=image_b.original, name=labels.name),
        confidence=share * _matched_share(match, image_b),
        alignment=alignment,
        doubt=doubt,
    )


def _left_over(
    pairs: Pairs, start: np.ndarray, b: Embedding, points_mm: np.ndarray, smoothing: float
) -> np.ndarray:
    """Interpolate what a map from B to A leaves over of pairs, in mm, at points in mm of B."""
    rest = pairs.mm_a - (pairs.mm_b @ start[:3, :3].T + start[:3, 3])
    # In patches: in mm, the nearest pairs of a scan with thick slices lie in one plane.
    to_patches = np.linalg.inv(b.affine[:3, :3]).T / b.stride
    return smooth_displacement(
        pairs.mm_b @ to_patches, rest, points_mm @ to_patches, smoothing=smoothing
    )


def _slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Planes that are worked on at a time, so that memory does not grow with the scan."""
    thick = max(1, _VOXELS_AT_ONCE // (shape[1] * shape[2]))
    for first in range(0, shape[0], thick):
        yield slice(first, min(first + thick, shape[0]))


def _carry(registration: Registration, labels: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Labels at every voxel of B, and their share times the agreement of the intensities."""
    # Half the memory where the numbers fit.
    kind = np.int64 if labels.array.dtype.itemsize >= 4 else np.int32
    source = torch.from_numpy(labels.array.astype(kind))
    found = np.empty(registration.shape, labels.array.dtype)
    sure = np.empty(registration.shape, np.float32)
    for planes in _slabs(registration.shape):
        label, share = _soft_label(source, registration.voxels_in(labels.affine, planes))
        found[planes] = label.numpy()
        sure[planes] = (share * registration.agreement_in(planes)).numpy()
    return found, sure


def _soft_label(labels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Label with the largest share at voxel coordinates (..., 3), and the share.

    The same as interpolating every label's mask linearly, at the cost of the eight corners.
    """
    below = places.floor()
    part = (places - below).reshape(-1, 3)
    below = below.long().reshape(-1, 3)
    most = torch.tensor(labels.shape) - 1
    strides = torch.tensor(labels.stride())
    flat = labels.flatten()
    corners, weights = [], []
    for corner in product((0, 1), repeat=3):
        step = torch.tensor(corner)
        at = below + step
        near = at.clamp(torch.zeros_like(most), most)
        corners.append(torch.where((at == near).all(-1), flat[(near * strides).sum(-1)], 0))
        weights.append(torch.where(step.bool(), part, 1 - part).prod(-1))
    best, share = corners[0].clone(), torch.ones_like(weights[0])
    # Most voxels lie inside a structure, where all corners agree.
    mixed = torch.nonzero(torch.stack([one != best for one in corners[1:]]).any(0))[:, 0]
    corners, weights = ([values[mixed] for values in eight] for eight in (corners, weights))
    winner, most_share = corners[0], torch.zeros_like(weights[0])
    for one in corners:
        total = torch.zeros_like(most_share)
        for other, weight in zip(corners, weights, strict=True):
            total += weight * (other == one)
        better = total > most_share + 1e-6
        winner = torch.where(better, one, winner)
        most_share = torch.where(better, total, most_share)
    best[mixed], share[mixed] = winner, most_share
    return best.reshape(places.shape[:-1]), share.reshape(places.shape[:-1])


def _matched_share(match: Match, target: Volume) -> np.ndarray:
    """Mass of the plan that the patches of B received, at every voxel (Z, Y, X)."""
    _, unmatched = match.unmatched()
    matched = (1 - unmatched).nan_to_num(nan=0.0).clamp(0, 1)[None]
    result = np.empty(target.shape, np.float32)
    # B may have been embedded on a coarser grid; rounded, so that edges stay where they are.
    to_b = torch.tensor(np.round(np.linalg.inv(match.b.affine) @ target.affine, 9)).float()
    shift = to_b[:3, 3] - torch.tensor(match.b.offset_vox)
    for planes in _slabs(target.shape):
        voxels = grid_places((planes.stop - planes.start, *target.shape[1:]), first=planes.start)
        tokens = (voxels @ to_b[:3, :3].mT + shift + 0.5) / match.b.stride - 0.5
        # Up to its edge a patch has its own mass; beyond what was embedded, nothing was matched.
        covered = is_inside(tokens, match.b.grid, 0.5)
        nearest = tokens.clamp(torch.zeros(3), torch.tensor(match.b.grid) - 1.0)
        result[planes] = (sample(matched, nearest)[0] * covered).numpy()
    return result


def fuse(transfers: Sequence[Transfer]) -> Transfer:
    """Fuse the labels that several atlases gave one scan: each voxel votes, weighed by confidence.

    Parameters
    ----------
    transfers : sequence of Transfer
        On the same grid.

    Returns
    -------
    Transfer
        ``confidence`` is the mean over the atlases, those that voted otherwise counting as 0;
        ``alignment`` the first one's.
    """
    arrays = [transfer.labels.array for transfer in transfers]
    shape = arrays[0].shape
    winner = np.empty(shape, np.result_type(*arrays))
    confidence = np.empty(shape, np.float32)
    for planes in _slabs(shape):
        slabs = [array[planes] for array in arrays]
        weights = [transfer.confidence[planes] for transfer in transfers]
        most = np.full(slabs[0].shape, -1.0, np.float32)
        for label in np.unique(np.concatenate([np.unique(slab) for slab in slabs])):
            votes = np.zeros_like(most)
            for slab, weight in zip(slabs, weights, strict=True):
                # Where nobody is sure of anything, the majority decides.
                votes += (slab == label) * (weight + _LEAST_WEIGHT)
            better = votes > most
            winner[planes][better] = label
            most[better] = votes[better]
        agreeing = [
            np.where(slab == winner[planes], weight, 0)
            for slab, weight in zip(slabs, weights, strict=True)
        ]
        confidence[planes] = np.mean(agreeing, axis=0)
    first = transfers[0]
    labels = Volume(winner, first.labels.affine, original=first.labels.original, name="fused")
    return Transfer(labels, confidence, first.alignment)
