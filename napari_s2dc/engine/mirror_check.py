"""Whether left and right of two matched scans are swapped: scan A mirrored, beside A as it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from napari_s2dc.engine.embed import embed_volume
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encode import out_of_memory
from napari_s2dc.engine.match import Match, MatchSettings, match_embeddings
from napari_s2dc.engine.match_checks import align_match, mirror_sentence
from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.engine.registration import register
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume

__all__ = [
    "MirrorRatios",
    "embed_mirrored",
    "mirror_ratios",
    "mirror_warning",
    "registered_correlation",
]

_LEAST_CONFIDENCE_RATIO = 1.15
"""How much more surely the mirrored scan is matched, as it lies. Measured with the bundled encoder
(`benchmarks.matching --parts checks`, and all pairs of ten brains): 1.26 to 2.75 for mirrored scans
of one subject, 1.73 to 2.58 for mirrored hippocampi of another, 1.17 to 1.56 for phantoms, 1.16 and
1.34 for two thoraces; 0.39 to 0.86 for what is not mirrored, but up to 1.42 for brains that lie
askew to each other, so much alike are their sides."""
_LEAST_CORRELATION_RATIO = 1.05
"""How much better its intensities agree, registered. Measured in the same way where the mirrored
scan is matched more surely: 1.24 to 3.59 for mirrored scans of one subject, 1.69 to 2.19 for
mirrored hippocampi of another, 1.12 to 1.14 for phantoms, 1.09 and 1.11 for two thoraces; 0.84 to
1.02 for brains that are not mirrored."""


def embed_mirrored(
    volume: Volume, encoder: SwinEncoder, settings: EmbedSettings
) -> Steps[Embedding]:
    """Embed a scan with left and right swapped, for :func:`mirror_ratios`.

    Parameters
    ----------
    volume : Volume
        Scan with raw intensities.
    encoder, settings
        As for :func:`napari_s2dc.engine.embed.embed_volume`.

    Yields
    ------
    Progress
        After every batch of windows.
    """
    width = volume.shape[2]
    roi = settings.roi
    if roi is not None:
        roi = (roi[0], roi[1], (width - roi[2][1], width - roi[2][0]))
    return (yield from embed_volume(_swapped(volume), encoder, replace(settings, roi=roi)))


@dataclass(frozen=True)
class MirrorRatios:
    """How much better the mirrored scan A fits scan B than scan A itself.

    Parameters
    ----------
    confidence : float
        How many times as surely it is matched, as both lie; 0 where scan A has no partners at all.
    correlation : float or None
        How many times as well its intensities agree, registered; infinite where scan A as it is has
        no map to start from. None where nobody looked: it is not matched more surely, or images or
        memory lack.
    """

    confidence: float
    correlation: float | None = None

    @property
    def mirrored(self) -> bool:
        """Whether left and right are swapped, as far as this tells."""
        if self.confidence < _LEAST_CONFIDENCE_RATIO:
            return False
        return self.correlation is None or self.correlation >= _LEAST_CORRELATION_RATIO


def mirror_ratios(
    match: Match,
    mirrored: Embedding,
    images: tuple[Volume, Volume] | None,
    settings: MatchSettings | None = None,
) -> Steps[MirrorRatios]:
    """Measure whether the mirrored scan A fits scan B better than scan A itself.

    Parameters
    ----------
    match : Match
        Scan A with scan B.
    mirrored : Embedding
        Of A with left and right swapped, see :func:`embed_mirrored`.
    images : (Volume, Volume) or None
        The scans A and B themselves; None where they are not at hand, which leaves the second look
        out.
    settings : MatchSettings, optional
        Those of the match.

    Yields
    ------
    Progress
        Steps of the registrations, where there is a second look.

    Returns
    -------
    MirrorRatios

    Notes
    -----
    The first look asks whether the mirrored scan is matched more surely, both as they lie. Features
    turn with a scan, so of scans that lie askew the mirrored one may be nearer to B by its pose
    alone. Where the first look would warn, the second one registers both with B, each from the map
    of its own pairs, and compares how well their intensities agree: not at all where the pairs
    agree on no map, or on one that is a mirror image. Where neither has such a map, or memory is
    short, the first look stands.

    The map of the pairs does not tell: where the prior expects a partner near its own place, or a
    body is much the same on both sides, the pairs of a mirrored scan fit a map that is no mirror
    image. A mirrored brain is told from a scan of the same subject only.
    """
    yield Progress(0, 0, "plans")
    other = match_embeddings(mirrored, match.b, settings)
    # A further look in one pose makes any match surer; what is mirrored had none.
    own = match if match.matrix is None else match_embeddings(match.a, match.b, settings)
    sure, surer = (float(one.mass.amax(1).mean()) for one in (own, other))
    first = MirrorRatios(surer / sure if sure > 0 else 0.0)
    if images is None or not first.mirrored:
        return first
    try:
        image_a, image_b = images
        as_it_is = yield from registered_correlation(own, (image_a, image_b))
        swapped = yield from registered_correlation(other, (_swapped(image_a), image_b))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return first
    return replace(first, correlation=swapped / as_it_is if as_it_is > 0 else math.inf)


def mirror_warning(
    match: Match,
    mirrored: Embedding,
    images: tuple[Volume, Volume] | None,
    settings: MatchSettings | None = None,
) -> Steps[str]:
    """Say when the mirrored scan A fits scan B better than scan A itself.

    Parameters
    ----------
    match, mirrored, images, settings
        As for :func:`mirror_ratios`.

    Yields
    ------
    Progress
        Steps of the registrations, where there is a second look.

    Returns
    -------
    str
        A sentence, or "" when all is well.
    """
    found = yield from mirror_ratios(match, mirrored, images, settings)
    if not found.mirrored:
        return ""
    why = f"with {match.a.name} mirrored, patches are matched {100 * (found.confidence - 1):.0f} % "
    return mirror_sentence(match.a, match.b, f"{why}more surely")


def _swapped(volume: Volume) -> Volume:
    return volume.with_array(np.ascontiguousarray(volume.array[:, :, ::-1]))


def registered_correlation(match: Match, images: tuple[Volume, Volume]) -> Steps[float]:
    """Register two scans from the map of their pairs and say how well their intensities agree.

    Parameters
    ----------
    match : Match
        Scan A with scan B.
    images : (Volume, Volume)
        The scans themselves.

    Yields
    ------
    Progress
        Steps of the registration.

    Returns
    -------
    float
        Squared local correlation, 0 to 1; 0 where the pairs agree on no map, or on a mirror image.
    """
    yield Progress(0, 0, "steps")
    try:
        found = align_match(match)
        if found.mirrored:
            return 0.0  # it would undo the swap
        start = np.linalg.inv(found.matrix)
        registration = yield from register((match.a, match.b), images, start)
    except (S2DCError, np.linalg.LinAlgError):
        return 0.0
    return registration.correlation
