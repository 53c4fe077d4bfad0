"""Match two embedded scans: optimal transport with a dustbin between their patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.neighbours import neighbourhoods
from napari_s2dc.errors import ConfigurationError, S2DCError
from napari_s2dc.method.transport import LARGEST_SPREAD, assignment

__all__ = ["Match", "MatchSettings", "Pairs", "match_embeddings"]

_BYTES_PER_PAIR = 40
"""Scores, kernel, its transpose, the plan and temporaries; 38 were measured at 8,000 × 8,000."""
_BYTES_PER_PAIR_DOUBLE = 80
_NO_MASS = 0.99 * LARGEST_SPREAD[torch.float32]
"""What scores that much less than the best gets no mass that single precision tells from none."""
_BELOW_DUSTBIN = 20.0
"""Between tokens of which none has a partner, scores so far below leave exp(-10) to partners."""
_ROUNDED = 1e-9
"""Share of a row's largest mass that is as good as nothing."""


@dataclass(frozen=True)
class MatchSettings:
    """How two scans are matched.

    Parameters
    ----------
    temperature : float
        Divides similarities; lower is more decided.
    neighbours : float
        How much the similarity of the patches beside two patches counts, see
        :func:`napari_s2dc.engine.neighbours.neighbourhoods`; 0: only their own.
    unmatched_similarity : float
        Similarity below which a patch would rather stay without a partner.
    prior : float or None
        How far from its own place, after centring, a partner is expected: standard deviation as a
        share of the larger scan's root mean square radius. None: anywhere.
    aligned_prior : float or None
        The same where a map of one scan to the other is known: standard deviation in patches of B,
        along its axes, from where the map puts it. None, or where `prior` is None: anywhere.
    iterations, tolerance : int, float
        Sinkhorn iterations at most, and how much mass rows and columns may be off when they stop
        earlier; a patch has a mass of 1.
    memory_bytes : int
        Above this the scans are matched coarsely first, then within as many matched neighbourhoods
        as fit.
    """

    temperature: float = 0.02
    neighbours: float = 0.5
    unmatched_similarity: float = 0.7
    prior: float | None = 0.6
    aligned_prior: float | None = 1.0
    iterations: int = 500
    tolerance: float = 1e-4
    memory_bytes: int = 2**30

    @property
    def dustbin(self) -> float:
        """Score of matching nothing."""
        return self.unmatched_similarity / self.temperature

    @property
    def bytes_per_pair(self) -> int:
        """Memory that the whole plan takes for each pair of patches."""
        double = _spread(1 / self.temperature, self.dustbin) > _NO_MASS
        return _BYTES_PER_PAIR_DOUBLE if double else _BYTES_PER_PAIR

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigurationError("The temperature of matching must be above 0, and finite.")
        if not 0 <= self.neighbours <= 1:
            raise ConfigurationError("The weight of neighbours in matching must be from 0 to 1.")
        if not math.isfinite(self.unmatched_similarity):
            raise ConfigurationError("The similarity of unmatched patches must be finite.")
        for prior in (self.prior, self.aligned_prior):
            if prior is not None and not 0 < prior < math.inf:
                raise ConfigurationError(
                    "The spatial prior must be above 0 and finite, or left out."
                )


@dataclass(frozen=True)
class Pairs:
    """Every patch of A with its best partner in B, the most confident first.

    Parameters
    ----------
    token_a, token_b : np.ndarray (pairs, 3)
        Token indices (z, y, x).
    voxel_a, voxel_b : np.ndarray (pairs, 3)
        Positions in voxels (z, y, x); those of B are the mean of the best partner's neighbourhood,
        weighed by the plan, so that they are finer than tokens.
    mm_a, mm_b : np.ndarray (pairs, 3)
        The same in mm (z, y, x).
    confidence : np.ndarray (pairs,)
        Mass of the plan on the partner, 0 to 1.
    mutual : np.ndarray (pairs,)
        Boolean; the partner's best partner is this patch.
    """

    token_a: np.ndarray
    token_b: np.ndarray
    voxel_a: np.ndarray
    voxel_b: np.ndarray
    mm_a: np.ndarray
    mm_b: np.ndarray
    confidence: np.ndarray
    mutual: np.ndarray

    def __len__(self) -> int:
        return len(self.confidence)

    def best(self, number: int | None = None, *, least: float = 0.0, mutual: bool = False) -> Pairs:
        """Return the most confident pairs.

        Parameters
        ----------
        number : int, optional
            At most so many.
        least : float
            Only with at least this confidence.
        mutual : bool
            Only mutual nearest neighbours.
        """
        keep = self.confidence >= least
        if mutual:
            keep &= self.mutual
        return self.of(np.flatnonzero(keep)[:number])

    def in_voxels_of(self, affine_a: np.ndarray | None, affine_b: np.ndarray | None) -> Pairs:
        """Give the positions in voxels of other grids of the same scans.

        Parameters
        ----------
        affine_a, affine_b : np.ndarray (4, 4), optional
            (z, y, x) voxel of those grids to mm; None for the one that was matched.
        """
        voxels = [
            own if affine is None else np.linalg.solve(affine[:3, :3], (mm - affine[:3, 3]).T).T
            for own, affine, mm in (
                (self.voxel_a, affine_a, self.mm_a),
                (self.voxel_b, affine_b, self.mm_b),
            )
        ]
        return replace(self, voxel_a=voxels[0], voxel_b=voxels[1])

    def of(self, chosen: np.ndarray) -> Pairs:
        """Return some pairs, by their places in the list or a boolean for each."""
        return Pairs(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Match:
    """The plan between the foreground tokens of two scans.

    Parameters
    ----------
    a, b : Embedding
        The scans.
    index_a, index_b : Tensor (n,) and (m,)
        Flat token indices (first axis slowest) of the rows and columns.
    candidates : Tensor (n, k) or None
        Columns that `mass` speaks of; None when it speaks of all m.
    mass : Tensor (n, k) or (n, m)
        Assignment probabilities; a row sums to at most 1, the rest is the dustbin's.
    matrix : np.ndarray (4, 4) or None
        Map from mm of A to mm of B round which partners were looked for; None when it was not
        known.
    """

    a: Embedding
    b: Embedding
    index_a: Tensor
    index_b: Tensor
    candidates: Tensor | None
    mass: Tensor
    matrix: np.ndarray | None = None

    def row(self, token: Sequence[int]) -> Tensor:
        """Where a patch of A goes: its transport row on the token grid of B (tz, ty, tx)."""
        shape = self.b.features.shape[1:]
        found = torch.nonzero(self.index_a == _flat(token, self.a.features.shape[1:]))[:, 0]
        image = torch.zeros(int(np.prod(shape)))
        if len(found):
            place = int(found[0])
            columns = slice(None) if self.candidates is None else self.candidates[place]
            # Added: candidates that are there to fill the row up repeat a column, without mass.
            image.index_add_(0, self.index_b[columns], self.mass[place])
        return image.reshape(shape)

    def unmatched(self) -> tuple[Tensor, Tensor]:
        """Mass without a partner, for every token of A and of B; NaN in the background."""
        received = torch.zeros(len(self.index_b))
        if self.candidates is None:
            received = self.mass.sum(0)
        else:
            received.index_add_(0, self.candidates.flatten(), self.mass.flatten())
        return (
            _on_grid(1 - self.mass.sum(1), self.index_a, self.a),
            _on_grid(1 - received, self.index_b, self.b),
        )

    def pairs(self) -> Pairs:
        """List every patch of A with its best partner."""
        return self._pairs

    @cached_property
    def _pairs(self) -> Pairs:
        confidence, place = self.mass.max(1)
        columns = (
            place if self.candidates is None else self.candidates.gather(1, place[:, None])[:, 0]
        )
        order = torch.argsort(confidence, descending=True, stable=True)
        token_a = _tokens(self.index_a[order], self.a)
        token_b = _tokens(self.index_b[columns[order]], self.b)
        voxel_a, voxel_b = voxels_of(token_a, self.a), self._fine(columns)[order].numpy()
        return Pairs(
            token_a=token_a,
            token_b=token_b,
            voxel_a=voxel_a,
            voxel_b=voxel_b,
            mm_a=_mm(voxel_a, self.a),
            mm_b=_mm(voxel_b, self.b),
            confidence=confidence[order].numpy(),
            mutual=(self._best_rows()[columns] == torch.arange(len(columns)))[order].numpy(),
        )

    def _best_rows(self) -> Tensor:
        """Best row of every column (m,)."""
        if self.candidates is None:
            return self.mass.argmax(0)
        columns, mass = self.candidates.flatten().long(), self.mass.flatten()
        most = torch.zeros(len(self.index_b)).scatter_reduce_(0, columns, mass, "amax")
        strongest = torch.nonzero(mass == most[columns])[:, 0]
        rows = strongest // self.mass.shape[1]
        # The first of several that are equally strong, as above.
        none = torch.full((len(self.index_b),), len(self.mass))
        return none.scatter_reduce_(0, columns[strongest], rows, "amin")

    def _fine(self, columns: Tensor) -> Tensor:
        """Mean position in voxels of B, by mass, within one and a half tokens of `columns`."""
        centres = torch.as_tensor(voxels_of(_tokens(self.index_b, self.b), self.b))
        result = torch.empty(len(columns), 3, dtype=centres.dtype)
        reach = 1.5 * self.b.stride
        for start in range(0, len(columns), 1024):
            part = slice(start, start + 1024)
            mass = self.mass[part].to(centres.dtype)
            if self.candidates is None:
                near = torch.cdist(centres[columns[part]], centres) <= reach
                # The partner counts even where all its mass was rounded to nothing.
                weight = (mass / mass.amax(1, keepdim=True).clamp(min=1e-30)) * near
                weight[torch.arange(len(mass)), columns[part]] += _ROUNDED
                result[part] = (weight @ centres) / weight.sum(1, keepdim=True)
            else:
                places = centres[self.candidates[part]]
                distance = (places - centres[columns[part]][:, None]).norm(dim=-1)
                near = (distance <= reach) & (mass > 0)
                weight = (mass / mass.amax(1, keepdim=True).clamp(min=1e-30) * near)[..., None]
                partner = _ROUNDED * centres[columns[part]]
                result[part] = ((weight * places).sum(1) + partner) / (weight.sum(1) + _ROUNDED)
        return result


def _flat(token: Sequence[int], shape: Sequence[int]) -> int:
    z, y, x = (int(part) for part in token)
    return (z * shape[1] + y) * shape[2] + x


def _tokens(index: Tensor, embedding: Embedding) -> np.ndarray:
    return np.stack(np.unravel_index(index.numpy(), tuple(embedding.features.shape[1:])), axis=1)


def voxels_of(tokens: np.ndarray, embedding: Embedding) -> np.ndarray:
    """Centres of tokens (n, 3) in voxels (z, y, x) of the scan."""
    return (tokens + 0.5) * embedding.stride - 0.5 + np.asarray(embedding.offset_vox)


def _mm(voxels: np.ndarray, embedding: Embedding) -> np.ndarray:
    return voxels @ embedding.affine[:3, :3].T + embedding.affine[:3, 3]


def _on_grid(values: Tensor, index: Tensor, embedding: Embedding) -> Tensor:
    shape = embedding.features.shape[1:]
    image = torch.full((int(np.prod(shape)),), torch.nan)
    image[index] = values
    return image.reshape(shape)


def foreground_index(embedding: Embedding) -> Tensor:
    """Flat indices of the tokens that are mostly tissue.

    Raises
    ------
    S2DCError
        There is none.
    """
    index = torch.nonzero(embedding.foreground.flatten())[:, 0]
    if not len(index):
        raise S2DCError(f"{embedding.name} has no foreground to match.", "Choose another scan.")
    return index


def scores_of(
    similarity: Tensor, places: tuple[Tensor, Tensor] | None, settings: MatchSettings
) -> Tensor:
    """Scores (..., r, c): similarity over temperature, less the spatial prior.

    Parameters
    ----------
    similarity : Tensor (..., r, c)
        Overwritten.
    places : (Tensor (..., r, 3), Tensor (..., c, 3)) or None
        As :func:`places_of` gives them.
    settings : MatchSettings
        Temperature.
    """
    scores = similarity.div_(settings.temperature)
    if places is not None:
        # The logarithm of a Gaussian; its constant is the same for all.
        scores -= torch.cdist(*places).square_().div_(2)
    return scores


def _spread(best: float, dustbin: float) -> float:
    """How far below the best score differences still matter."""
    return max(_NO_MASS, best - dustbin + _BELOW_DUSTBIN)


def plan_of(scores: Tensor, settings: MatchSettings) -> Tensor:
    """Solve for the assignment probabilities (n, m) of scores, which are overwritten.

    Parameters
    ----------
    scores : Tensor (n, m)
        As of :func:`scores_of`.
    settings : MatchSettings
        Dustbin and accuracy.
    """
    # Most are far enough below the best for single precision, which takes half the memory.
    best = max(float(scores.amax()), settings.dustbin)
    scores = scores.clamp_(min=best - _spread(best, settings.dustbin))
    plan = assignment(
        scores[None],
        settings.dustbin,
        iterations=settings.iterations,
        tolerance=settings.tolerance / sum(scores.shape),
    )
    return plan[0, :-1, :-1]


def places_of(
    a: Embedding,
    b: Embedding,
    index_a: Tensor,
    index_b: Tensor,
    settings: MatchSettings,
    matrix: np.ndarray | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Places of tokens that a pair of partners is expected to share.

    Parameters
    ----------
    a, b : Embedding
        Scans.
    index_a, index_b : Tensor (n,) and (m,)
        Flat token indices.
    settings : MatchSettings
        Priors.
    matrix : np.ndarray (4, 4), optional
        Map from mm of A to mm of B; without it, both scans are centred.

    Returns
    -------
    (Tensor (n, 3), Tensor (m, 3)) or None
        In standard deviations of the prior; None where a partner may be anywhere.
    """
    prior = settings.prior if matrix is None else settings.aligned_prior
    if prior is None or settings.prior is None:
        return None
    of_a, of_b = (
        _mm(voxels_of(_tokens(index, scan), scan), scan)
        for scan, index in ((a, index_a), (b, index_b))
    )
    if matrix is None:
        of_a, of_b = of_a - of_a.mean(0), of_b - of_b.mean(0)
        unit_mm = max(float(np.sqrt((mm**2).sum(1).mean())) for mm in (of_a, of_b))
        deviation = prior * max(unit_mm, 1e-6) * np.eye(3)
    else:
        of_a = of_a @ matrix[:3, :3].T + matrix[:3, 3] - b.affine[:3, 3]
        of_b = of_b - b.affine[:3, 3]
        deviation = prior * b.stride * b.affine[:3, :3]
    one, other = (
        torch.as_tensor(np.linalg.solve(deviation, mm.T).T, dtype=torch.float32)
        for mm in (of_a, of_b)
    )
    return one, other


@torch.no_grad()
def match_embeddings(
    a: Embedding,
    b: Embedding,
    settings: MatchSettings | None = None,
    *,
    matrix: np.ndarray | None = None,
) -> Match:
    """Match the foreground patches of two scans.

    Parameters
    ----------
    a, b : Embedding
        Made with the same encoder and stage; sizes and spacings may differ.
    settings : MatchSettings, optional
        Defaults when left out.
    matrix : np.ndarray (4, 4), optional
        Map from mm of A to mm of B near which partners are looked for, where it is known; see
        :func:`napari_s2dc.engine.aligned_match.match_aligned`.

    Returns
    -------
    Match
        Plan and what follows from it.

    Raises
    ------
    S2DCError
        A scan has no foreground, or the features do not fit together.

    Notes
    -----
    Source: S²DC, section 3.2, with the plan of training used between scans.
    """
    from napari_s2dc.engine.coarse_match import coarse_to_fine

    settings = settings or MatchSettings()
    if a.features.shape[0] != b.features.shape[0] or a.stride != b.stride:
        raise S2DCError(
            f"{a.name} and {b.name} were embedded with different encoders or stages.",
            "Embed both with the same encoder and stage.",
        )
    index_a, index_b = foreground_index(a), foreground_index(b)
    if len(index_a) * len(index_b) * settings.bytes_per_pair > settings.memory_bytes:
        return coarse_to_fine(a, b, settings, matrix)
    places = places_of(a, b, index_a, index_b, settings, matrix)
    near = neighbourhoods(a, b, index_a, index_b, settings.neighbours, matrix)
    scores = scores_of(near.similarity(), places, settings)
    return Match(a, b, index_a, index_b, None, plan_of(scores, settings), matrix)
