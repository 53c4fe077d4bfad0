"""What to say about a match before anybody relies on it: the fitted map and clear sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from napari_s2dc.engine.alignment import (
    FEWEST_PAIRS,
    LEAST_CONFIDENCE,
    Alignment,
    distances_mm,
    fit_alignment,
    nearest_rigid,
)
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encoders import ANY_CONTRAST
from napari_s2dc.engine.match import Match, Pairs
from napari_s2dc.errors import S2DCError
from napari_s2dc.volumes.preprocess import guess_preset
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "Assessment",
    "align_match",
    "assess",
    "kind_of",
    "mirror_sentence",
    "warnings_before",
]


_FEWEST_TOKENS = 8
_MOST_TOKENS = 40_000
"""Beyond, patches are so small beside the body that few are sure: of a torso CT of 512 x 512 x 400
voxels 5 % were, of the same with half as many along each axis 62 %."""
_UNIT_FACTOR = 4.0
_SIZE_FACTOR = 8.0
# Measured with the bundled encoder (`benchmarks.matching --parts checks`): 45 to 100 % of the
# patches of two mouse brains, hippocampi, thoraces or phantoms; 3 to 12 % of a torso with a thorax,
# a phantom or a mouse brain. Not told by this: a mouse brain from a hippocampus (21 to 27 %), whose
# sizes are mostly said to differ, and a thorax from a phantom of a torso, which has one (up to
# 41 %).
_FEW_CONFIDENT = 0.15
# Measured in the same way: 0.84 to 1.00 of the confident pairs of scans that show one region, 0 to
# 0.60 of the others that have few.
_LEAST_AGREEMENT = 0.45
_KINDS = {"ct": "CT", "mr": "MR", "pet": "PET"}


@dataclass(frozen=True)
class Assessment:
    """What a match is worth.

    Parameters
    ----------
    pairs : Pairs
        All pairs, the most confident first.
    confident : int
        Mutual pairs with at least the least confidence.
    alignment : Alignment or None
        Map from mm of A to mm of B, see :func:`align_match`; None when the confident pairs agree on
        none.
    warnings : tuple of str
        One sentence for each thing that the user should know.
    agreed : bool
        Whether enough patches have a confident partner and enough of those agree on the map, which
        is no mirror image.
    """

    pairs: Pairs
    confident: int
    alignment: Alignment | None
    warnings: tuple[str, ...]
    agreed: bool


def kind_of(volume: Volume) -> str:
    """Kind of a scan, ``ct``, ``mr`` or ``pet``: as its file says, else by its values."""
    return volume.modality or guess_preset(volume.array).partition("_")[0]


def warnings_before(a: Embedding, b: Embedding, kinds: tuple[str, str] | None = None) -> list[str]:
    """Look for what makes a match doubtful before it is made.

    Parameters
    ----------
    a, b : Embedding
        Scans.
    kinds : (str, str), optional
        Kind of each, see :func:`kind_of`, where the scans themselves are at hand.

    Returns
    -------
    list of str
        Sentences; empty when all is well.
    """
    sentences = []
    if kinds is not None and kinds[0] != kinds[1]:
        one, other = (_KINDS.get(kind, kind) for kind in kinds)
        doubt = "an encoder of intensities may see the same place differently in the two"
        if a.metadata.get("borders") and b.metadata.get("borders"):
            doubt = "they agree only where the same borders of tissues are seen in both"
        elif set(kinds) == {"ct", "mr"}:
            doubt += f"; '{ANY_CONTRAST}' looks at borders of tissues instead"
        sentences.append(
            f"{a.name} is {one} and {b.name} is {other}: {doubt}. Look at the confidence before "
            "using the result."
        )
    counts = [int(scan.foreground.sum()) for scan in (a, b)]
    for scan, count in zip((a, b), counts, strict=True):
        if 0 < count < _FEWEST_TOKENS:
            patches = "1 patch" if count == 1 else f"{count} patches"
            sentences.append(
                f"{scan.name} has only {patches} of tissue, too few to tell places apart; use a "
                "larger scan or an earlier stage, whose patches are smaller."
            )
        if count > _MOST_TOKENS:
            sentences.append(
                f"{scan.name} has {count} patches of tissue, each a small part of it: a match is "
                "quicker and mostly surer, if less exact, at a coarser resolution or a later stage."
            )
    sizes = [_radius_mm(scan) for scan in (a, b)]
    if min(sizes) > 0 and min(counts) >= _FEWEST_TOKENS:
        sentences += _about_size(a, b, sizes, counts)
    return sentences


def _radius_mm(embedding: Embedding) -> float:
    """Root mean square distance in mm of the tissue from its middle."""
    tokens = np.argwhere(embedding.foreground.numpy()) * np.asarray(embedding.spacing_mm)
    spread = (tokens - tokens.mean(0)) * embedding.stride
    return float(np.sqrt((spread**2).sum(1).mean()))


def _about_size(a: Embedding, b: Embedding, sizes: list[float], counts: list[int]) -> list[str]:
    """Sentences about sizes in mm that differ too much for one kind of body."""
    large, small = (a, b) if sizes[0] >= sizes[1] else (b, a)
    ratio = max(sizes) / min(sizes)
    spacing = max(
        float(one / other) for one, other in zip(large.spacing_mm, small.spacing_mm, strict=True)
    )
    if ratio >= _UNIT_FACTOR and spacing >= _UNIT_FACTOR:
        # The same number of voxels across: only the millimetres differ.
        voxels = [" × ".join(f"{side:.3g}" for side in scan.spacing_mm) for scan in (small, large)]
        return [
            f"{large.name} is {ratio:.0f} times as large in mm as {small.name}: its voxels are "
            f"{voxels[1]} mm, those of {small.name} {voxels[0]} mm. If they show the same kind of "
            "body, the spacing of one is in wrong units."
        ]
    if max(counts) >= _SIZE_FACTOR * min(counts):
        many, few = (a, b) if counts[0] >= counts[1] else (b, a)
        return [
            f"{many.name} has {max(counts) / min(counts):.0f} times as many patches of tissue as "
            f"{few.name}: most of it has no partner there."
        ]
    return []


def align_match(
    match: Match,
    *,
    kind: Literal["rigid", "affine"] = "affine",
    least: float = LEAST_CONFIDENCE,
) -> Alignment:
    """Give the map from mm of A to mm of B, and which of the confident pairs agree with it.

    Parameters
    ----------
    match : Match
        Scan A with scan B.
    kind : {"rigid", "affine"}
        Rotation and translation, or any linear map.
    least : float
        Least confidence of the pairs that count, which are the mutual ones.

    Returns
    -------
    Alignment
        Where the match was made round a map, that map, which a registration found (views of one
        scan: 3 to 12 times as exact as one fitted to the same pairs); as rigid map, the
        nearest to it at the pairs. Otherwise the one fitted to the pairs.

    Raises
    ------
    S2DCError
        Too few pairs, or too few agree on a map.
    """
    pairs = match.pairs().best(least=least, mutual=True)
    if match.matrix is None:
        return fit_alignment(pairs.mm_a, pairs.mm_b, tolerance_mm=_tolerance_mm(match.b), kind=kind)
    known = match.matrix if kind == "affine" else nearest_rigid(match.matrix, pairs.mm_a)
    return _agreeing(known, pairs, match.b)


def _agreeing(matrix: np.ndarray, pairs: Pairs, b: Embedding) -> Alignment:
    """Say which pairs agree with a map that is known."""
    distance = distances_mm(matrix, pairs.mm_a, pairs.mm_b)
    inliers = distance <= _tolerance_mm(b)
    if inliers.sum() < FEWEST_PAIRS:
        raise S2DCError(
            f"Only {inliers.sum()} confident pairs agree with the map between the scans.",
            "Choose scans that show the same region.",
        )
    return Alignment(matrix, inliers, float(np.median(distance[inliers])))


def _tolerance_mm(b: Embedding) -> float:
    """How far a pair may be off a map: one and a half patches of B."""
    return 1.5 * b.stride * float(np.mean(b.spacing_mm))


def assess(
    match: Match,
    *,
    kinds: tuple[str, str] | None = None,
    kind: Literal["rigid", "affine"] = "affine",
) -> Assessment:
    """Find the map of a match and say what is doubtful about the match.

    Parameters
    ----------
    match : Match
        Scan A with scan B.
    kinds : (str, str), optional
        As for :func:`warnings_before`.
    kind : {"rigid", "affine"}
        Of the map.
    """
    a, b = match.a, match.b
    pairs = match.pairs()
    confident = len(pairs.best(least=LEAST_CONFIDENCE, mutual=True))
    sentences = warnings_before(a, b, kinds)
    alignment: Alignment | None
    try:
        alignment = align_match(match, kind=kind)
    except S2DCError:
        alignment = None
    patches = min(int(a.foreground.sum()), int(b.foreground.sum()))
    agree = 0 if alignment is None else int(alignment.inliers.sum())
    doubt = ""
    enough = max(_FEWEST_TOKENS, _FEW_CONFIDENT * min(patches, _MOST_TOKENS))
    if patches >= _FEWEST_TOKENS and confident < enough:
        doubt = f"{confident} of {patches} patches found a confident partner"
    elif confident >= _FEWEST_TOKENS and agree < _LEAST_AGREEMENT * confident:
        doubt = f"{agree} of {confident} confident pairs agree on a map"
    if doubt:
        sentences.append(
            f"Only {doubt}: {a.name} and {b.name} may show different regions, or look too "
            "different for this encoder."
        )
    elif alignment is not None and alignment.mirrored:
        sentences.append(mirror_sentence(a, b, "the map that fits the pairs is a mirror image"))
    agreed = not doubt and alignment is not None and not alignment.mirrored
    return Assessment(pairs, confident, alignment, tuple(sentences), agreed)


def mirror_sentence(a: Embedding, b: Embedding, why: str) -> str:
    """Sentence that says that left and right are swapped, and `why` it is said."""
    return (
        f"{a.name} and {b.name} look like mirror images, left and right swapped: {why}. Check the "
        "orientation in the files before using the match."
    )
