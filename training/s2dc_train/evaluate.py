"""What an encoder has learned: matching accuracy, effective rank, nearest-neighbour structures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_s2dc.engine.embed import embed
from napari_s2dc.engine.measures import label_tokens, match_tokens, structure_accuracy
from napari_s2dc.method.encoder import STRIDES, SwinEncoder
from napari_s2dc.method.tokens import merge_tokens, problems
from s2dc_train.data import FullVolume
from s2dc_train.views import Views

PROBE_SUBJECTS = 3
PROBE_TOKENS = 1000

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
        From 1 (collapse to a line) to min(n - 1, C); NaN when a feature is no finite number.

    Notes
    -----
    Source: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    if not features.isfinite().all():
        return float("nan")
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(torch.special.entr(share).sum()))


@torch.no_grad()
def matching(
    views: Iterable[Views], encode: Encode, grid: Sequence[int], *, per_slice: bool
) -> dict[str, float]:
    """Measure matching accuracy and spread of features over fixed views.

    Parameters
    ----------
    views : iterable of Views
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
    right = asked = 0
    collected = []
    for view in views:
        first, second = (
            problems(merge_tokens(encode(crops).float(), grid), per_slice=per_slice)
            for crops in (view.first, view.second)
        )
        found = match_tokens(first, second, view.true_pairs)
        right += int(found.right.sum())
        asked += int(found.asked.sum())
        collected.append(first[view.valid_first])
    tokens = torch.cat(collected)
    return {
        "match_accuracy": right / asked if asked else float("nan"),
        "effective_rank": effective_rank(tokens) if len(tokens) > 1 else float("nan"),
        "token_std": float(F.normalize(tokens, dim=-1).std(0).mean()),
    }


def structures(
    training: Iterable[FullVolume], held_out: Iterable[FullVolume], encoder: SwinEncoder, stage: int
) -> float:
    """Name the structures of held-out scans by the 5 nearest tokens of training scans.

    Parameters
    ----------
    training, held_out : iterable of FullVolume
        Scans with label maps. Of each kind as many are taken as give :data:`PROBE_TOKENS` labelled
        tokens, but at least :data:`PROBE_SUBJECTS`.
    encoder : SwinEncoder
        Embeds them as the tools do: overlapping windows, features before any head.
    stage : int
        Encoder stage whose tokens are named.

    Returns
    -------
    float
        Accuracy; NaN without label maps, or when a feature is no finite number.
    """

    def tokens(scans: Iterable[FullVolume]) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        labelled = 0
        for scan in scans:
            assert scan.labels is not None
            names = label_tokens(scan.labels.numpy(), STRIDES[stage])
            found.append((embed(scan.image.numpy(), encoder, stage=stage), names))
            labelled += int((names > 0).sum())
            if len(found) >= PROBE_SUBJECTS and labelled >= PROBE_TOKENS:
                break
        return found

    known, asked = tokens(training), tokens(held_out)
    return structure_accuracy(known, asked) if known and asked else float("nan")
