"""Where a few more labels would teach a model most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from napari_s2dc.engine.embedding import Embedding

__all__ = ["PlaceToLabel", "places_to_label"]

_CENTRES = 256


@dataclass(frozen=True)
class PlaceToLabel:
    """A voxel round which labels are wanted.

    Parameters
    ----------
    voxel : tuple of int
        (z, y, x) in the scan; the most uncertain one of its token.
    uncertainty : float
        Mean over the token, 0 to 1.
    """

    voxel: tuple[int, int, int]
    uncertainty: float


def places_to_label(
    uncertainty: np.ndarray, labels: np.ndarray, embedding: Embedding, count: int = 5
) -> list[PlaceToLabel]:
    """Find tissue that is uncertain and unlike all that is labelled.

    Parameters
    ----------
    uncertainty : np.ndarray (Z, Y, X)
        0 (sure) to 1, on the grid of the embedded scan.
    labels : np.ndarray (Z, Y, X)
        What is labelled so far; 0 where nothing is.
    embedding : Embedding
        Of the whole scan.
    count : int
        Most places.

    Returns
    -------
    list of PlaceToLabel
        The first one first; fewer than `count` where there are fewer uncertain tokens.

    Notes
    -----
    Greedy k-centre (Sener and Savarese, "Active learning for convolutional neural networks: a
    core-set approach", ICLR 2018) over the tokens of tissue, with distances between features that
    are weighted by the uncertainty of the farther token. Labelled tokens are the first centres.
    """
    stride = embedding.stride
    doubt = torch.from_numpy(np.asarray(uncertainty, np.float32))
    # Tokens at the far edge reach past the scan, where nothing is uncertain.
    padding = [
        edge
        for tokens, side in zip(reversed(embedding.grid), reversed(doubt.shape), strict=True)
        for edge in (0, tokens * stride - side)
    ]
    padded = F.pad(doubt, padding)
    means = F.avg_pool3d(padded[None, None], stride).flatten()
    painted = F.pad(torch.from_numpy((labels != 0).astype(np.float32)), padding)
    labelled = F.max_pool3d(painted[None, None], stride).flatten() > 0
    unit = embedding.unit()
    weights = torch.where(embedding.foreground.flatten() & ~labelled, means, 0.0)
    nearest = torch.full((len(unit),), 2.0)  # the largest distance 1 - cosine
    for centre in _spread(unit[labelled]):
        nearest = torch.minimum(nearest, 1 - unit @ centre)
    places: list[PlaceToLabel] = []
    for _ in range(count):
        gain = weights * nearest
        token = int(gain.argmax())
        if not gain[token] > 0:
            break
        z, y, x = (int(part) * stride for part in np.unravel_index(token, embedding.grid))
        cube = uncertainty[z : z + stride, y : y + stride, x : x + stride]
        inside = np.unravel_index(int(np.argmax(cube)), cube.shape)
        place = (z + int(inside[0]), y + int(inside[1]), x + int(inside[2]))
        places.append(PlaceToLabel(place, float(means[token])))
        nearest = torch.minimum(nearest, 1 - unit @ unit[token])
        weights[token] = 0.0
    return places


def _spread(features: torch.Tensor) -> torch.Tensor:
    """Every few of many labelled tokens: complete masks have thousands that are alike."""
    return features[:: max(1, len(features) // _CENTRES)]
