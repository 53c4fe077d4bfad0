"""Measures of an encoder that need a known truth: two views of one scan, or organ labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from napari_s2dc.method.affine import Affine3D
from napari_s2dc.method.encoder import STRIDES, SwinEncoder
from napari_s2dc.method.similarity import cosine_similarity
from napari_s2dc.method.tokens import (
    merge_tokens,
    pair_matrix,
    partners,
    problems,
    split_crops,
    token_share,
)

__all__ = [
    "Matches",
    "ViewPair",
    "foreground_tokens",
    "label_tokens",
    "match_tokens",
    "match_views",
    "structure_accuracy",
    "two_views",
]

_LEAST_FOREGROUND = 0.05


@dataclass(frozen=True)
class ViewPair:
    """Two views of the middle of a scan and the tokens that truly correspond.

    Parameters
    ----------
    first, second : Tensor (Z, Y, X)
        The views; a whole number of crops each way.
    grid : tuple of int
        Crops along (z, y, x).
    crop_size : int
        Side of a crop in voxels.
    stage : int
        Encoder stage whose tokens are matched.
    true_pairs : Tensor (slices, n, n)
        Boolean, one matching problem for each z-slice of tokens.
    """

    first: Tensor
    second: Tensor
    grid: tuple[int, int, int]
    crop_size: int
    stage: int
    true_pairs: Tensor


@dataclass(frozen=True)
class Matches:
    """What an encoder makes of two views.

    Parameters
    ----------
    guess : Tensor (slices, n)
        The most similar token of view 2 for every token of view 1.
    asked : Tensor (slices, n)
        Boolean; the token has a true partner.
    right : Tensor (slices, n)
        Boolean; it has, and the guess is that.
    """

    guess: Tensor
    asked: Tensor
    right: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the asked tokens that are matched right."""
        return float(self.right.sum() / self.asked.sum().clamp(min=1))


def _middle(array: np.ndarray, size: Sequence[int]) -> Tensor:
    """Cut (or pad with 0) the middle of an array to a size; (1, 1, Z, Y, X)."""
    padding: list[int] = []
    for old, new in zip(reversed(array.shape), reversed(size), strict=True):
        before = (new - old) // 2
        padding += [before, new - old - before]
    return F.pad(torch.as_tensor(array, dtype=torch.float32)[None, None], padding)


def two_views(
    image: np.ndarray,
    foreground: np.ndarray,
    affine: Affine3D,
    *,
    grid: tuple[int, int, int],
    crop_size: int,
    stage: int,
) -> ViewPair:
    """Make two views of the middle of a scan; the second one is warped by a known map.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        Scan normalised to [0, 1].
    foreground : np.ndarray (Z, Y, X)
        Boolean; tokens with next to none of it are not asked for.
    affine : Affine3D
        Map of view 2.
    grid : tuple of int
        Crops along (z, y, x).
    crop_size : int
        Side of a crop in voxels.
    stage : int
        Encoder stage whose tokens are matched.
    """
    size = [crops * crop_size for crops in grid]
    source = torch.cat([_middle(image, size), _middle(foreground, size)], dim=1)
    warped = affine.warp(source)
    side = STRIDES[stage]
    token_grid = [length // side for length in size]
    first, second = (
        problems(token_share(view[:, 1:], side)[:, None] >= _LEAST_FOREGROUND, per_slice=True)
        for view in (source, warped)
    )
    pairs = pair_matrix(partners(affine, token_grid, side)[None], token_grid, per_slice=True)
    return ViewPair(source[0, 0], warped[0, 0], grid, crop_size, stage, pairs & first & second.mT)


def match_tokens(first: Tensor, second: Tensor, true_pairs: Tensor) -> Matches:
    """Match every token of view 1 to the most similar one of view 2.

    Parameters
    ----------
    first, second : Tensor (problems, n, C) and (problems, m, C)
        Features of the two views; every token of view 2 is a candidate.
    true_pairs : Tensor (problems, n, m)
        Boolean; tokens without a partner are not asked.
    """
    guess = cosine_similarity(first, second).argmax(-1)
    asked = true_pairs.any(-1)
    return Matches(guess, asked, torch.gather(true_pairs, 2, guess[..., None])[..., 0] & asked)


@torch.no_grad()
def match_views(pair: ViewPair, encoder: SwinEncoder) -> Matches:
    """Match the tokens of two views by the cosine similarity of their features.

    Parameters
    ----------
    pair : ViewPair
        As made by :func:`two_views`.
    encoder : SwinEncoder
        On the CPU; its features are used without any head.
    """

    def tokens(view: Tensor) -> Tensor:
        features = encoder(split_crops(view[None, None], pair.crop_size))[pair.stage]
        return problems(merge_tokens(features, pair.grid), per_slice=True)

    return match_tokens(tokens(pair.first), tokens(pair.second), pair.true_pairs)


def _whole_tokens(array: np.ndarray, token_size_vox: int) -> Tensor:
    padding: list[int] = []
    for side in reversed(array.shape):
        padding += [0, -side % token_size_vox]
    return F.pad(torch.as_tensor(array), padding)


def foreground_tokens(foreground: np.ndarray, token_size_vox: int) -> Tensor:
    """Tokens that are mostly body, on the grid of :func:`napari_s2dc.engine.embed.embed`.

    Parameters
    ----------
    foreground : np.ndarray (Z, Y, X)
        Boolean.
    token_size_vox : int
        Side of a token in voxels.

    Returns
    -------
    Tensor (tz, ty, tx)
        Boolean.
    """
    mask = _whole_tokens(foreground, token_size_vox)
    return token_share(mask[None, None], token_size_vox)[0] >= 0.5


def label_tokens(labels: np.ndarray, token_size_vox: int) -> Tensor:
    """Label that most voxels of each token have.

    Parameters
    ----------
    labels : np.ndarray (Z, Y, X)
        Integers; 0 is background.
    token_size_vox : int
        Side of a token in voxels.

    Returns
    -------
    Tensor (tz, ty, tx)
        Integers; the smaller label where two are equally frequent.
    """
    size = token_size_vox
    cells = rearrange(
        _whole_tokens(labels, size), "(z a) (y b) (x c) -> z y x (a b c)", a=size, b=size, c=size
    )
    return cells.mode(dim=-1).values


def structure_accuracy(
    known: Sequence[tuple[Tensor, Tensor]],
    asked: Sequence[tuple[Tensor, Tensor]],
    *,
    neighbours: int = 5,
) -> float:
    """How often the nearest patches of other subjects name the structure of a patch.

    Parameters
    ----------
    known : sequence of (features (C, tz, ty, tx), labels (tz, ty, tx))
        Subjects that vote; patches of label 0 take no part.
    asked : sequence of (features, labels)
        Subjects whose patches are named.
    neighbours : int
        Patches that vote, by cosine similarity; fewer where there are fewer.

    Returns
    -------
    float
        Share of the labelled patches named right; NaN when either side has none, or a feature of
        one is no finite number.
    """
    from sklearn.neighbors import KNeighborsClassifier

    def labelled(subjects: Sequence[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        features = [features[:, labels > 0].T for features, labels in subjects]
        return torch.cat(features).numpy(), torch.cat([n[n > 0] for _, n in subjects]).numpy()

    (points, names), (questions, truth) = labelled(known), labelled(asked)
    if not len(names) or not len(truth):
        return float("nan")
    if not np.isfinite(points).all() or not np.isfinite(questions).all():
        return float("nan")
    classifier = KNeighborsClassifier(min(neighbours, len(names)), metric="cosine")
    return float(classifier.fit(points, names).score(questions, truth))
