"""What an encoder has learned: matching accuracy, effective rank, nearest-neighbour structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from napari_s2dc.method.similarity import cosine_similarity
from napari_s2dc.method.tokens import merge_tokens, problems, split_crops
from s2dc_train.views import Views

Encode = Callable[[Tensor], Tensor]
"""Takes crops (N, 1, c, c, c) and gives the tokens (N, C, t, t, t) of the matched stage."""


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of centred features.

    Parameters
    ----------
    features : Tensor (n, C)
        Features; n > 1.

    Returns
    -------
    float
        From 1 (collapse to a line) to min(n - 1, C).

    Notes
    -----
    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(torch.special.entr(share).sum()))


def match_counts(first: Tensor, second: Tensor, true_pairs: Tensor) -> tuple[int, int]:
    """Count the tokens whose most similar token of the other view is their true partner.

    Parameters
    ----------
    first, second : Tensor (problems, n, C) and (problems, m, C)
        Features of the two views; every token of view 2 is a candidate.
    true_pairs : Tensor (problems, n, m)
        Boolean; tokens without a partner are not asked.

    Returns
    -------
    correct, asked : int
        Their quotient is the matching accuracy.
    """
    guess = cosine_similarity(first, second).argmax(-1)
    asked = true_pairs.any(-1)
    correct = torch.gather(true_pairs, 2, guess[..., None])[..., 0] & asked
    return int(correct.sum()), int(asked.sum())


@torch.no_grad()
def matching(
    views: Sequence[Views], encode: Encode, grid: Sequence[int], *, per_slice: bool
) -> dict[str, float]:
    """Measure matching accuracy and spread of features over fixed views.

    Parameters
    ----------
    views : sequence of Views
        Views of held-out scans.
    encode : callable
        The encoder up to the matched stage, before any head.
    grid : sequence of 3 ints
        Crops along (z, y, x).
    per_slice : bool
        One matching problem per z-slice of tokens, or one per volume.

    Returns
    -------
    dict
        ``match_accuracy`` (0 to 1), ``effective_rank`` and ``token_std`` of valid tokens.
    """
    correct = asked = 0
    collected = []
    for view in views:
        first, second = (
            problems(merge_tokens(encode(crops).float(), grid), per_slice=per_slice)
            for crops in (view.first, view.second)
        )
        right, total = match_counts(first, second, view.true_pairs)
        correct += right
        asked += total
        collected.append(first[view.valid_first])
    tokens = torch.cat(collected)
    return {
        "match_accuracy": correct / asked if asked else float("nan"),
        "effective_rank": effective_rank(tokens) if len(tokens) > 1 else float("nan"),
        "token_std": float(F.normalize(tokens, dim=-1).std(0).mean()),
    }


def majority_labels(labels: Tensor, size: int) -> Tensor:
    """Return the most frequent label of every cell; ties go to the smaller one.

    Parameters
    ----------
    labels : Tensor (Z, Y, X)
        Integer; every side a multiple of `size` voxels.
    size : int
        Side of a cell in voxels.

    Returns
    -------
    Tensor (cells,)
        First axis slowest.
    """
    cells = rearrange(labels, "(z a) (y b) (x c) -> (z y x) (a b c)", a=size, b=size, c=size)
    return cells.mode(dim=1).values


@torch.no_grad()
def labelled_tokens(
    image: Tensor, labels: Tensor, encode: Encode, *, crop_size: int, token_size_vox: int
) -> tuple[Tensor, Tensor]:
    """Features and majority labels of the foreground cells of a whole scan.

    Parameters
    ----------
    image : Tensor (Z, Y, X)
        Scan normalised to [0, 1]; padded here to whole crops, evenly.
    labels : Tensor (Z, Y, X)
        Integer structures; 0 is background.
    encode : callable
        The encoder up to the matched stage.
    crop_size, token_size_vox : int
        Sides of a crop and of a token in voxels.

    Returns
    -------
    features : Tensor (n, C)
        L2-normalised.
    labels : Tensor (n,)
        The label most frequent among the voxels of each cell, never 0.
    """
    padding: list[int] = []
    for side in reversed(image.shape):
        missing = -side % crop_size
        padding += [missing // 2, missing - missing // 2]
    image, labels = F.pad(image, padding), F.pad(labels, padding)
    grid = [side // crop_size for side in image.shape]
    crops = split_crops(image[None, None].float(), crop_size)
    # Empty crops hold no labelled cell, so their features are never looked at.
    used = split_crops(labels[None, None], crop_size).flatten(1).any(1)
    parts = [encode(chunk) for chunk in crops[used].split(8)]
    encoded = torch.cat(parts).float()
    features = encoded.new_zeros(len(crops), *encoded.shape[1:])
    features[used] = encoded
    tokens = problems(merge_tokens(features, grid), per_slice=False)[0]
    majority = majority_labels(labels, token_size_vox).to(tokens.device)
    inside = majority > 0
    return F.normalize(tokens[inside], dim=-1), majority[inside]


def nearest_neighbour_accuracy(
    training: Sequence[tuple[Tensor, Tensor]],
    held_out: Sequence[tuple[Tensor, Tensor]],
    *,
    neighbours: int = 5,
) -> float:
    """Accuracy of naming a cell's structure by its nearest cells of other subjects.

    Parameters
    ----------
    training, held_out : sequence of (features (n, C), labels (n,))
        As returned by :func:`labelled_tokens`, one per subject.
    neighbours : int
        Cells that vote; ties go to the smaller label.

    Returns
    -------
    float
        Share of held-out cells named right.
    """
    known = torch.cat([features for features, _ in training])
    names = torch.cat([labels for _, labels in training])
    right = total = 0
    for features, labels in held_out:
        # In parts: all cells of two large scans against each other would not fit into memory.
        for part, truth in zip(features.split(2048), labels.split(2048), strict=True):
            votes = names[(part @ known.mT).topk(min(neighbours, len(known)), dim=1).indices]
            right += int((votes.mode(dim=1).values == truth).sum())
        total += len(labels)
    return right / total if total else float("nan")
