"""What the Match tab runs in threads; nothing here touches Qt or layers."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari_s2dc.engine.match import Match
    from napari_s2dc.engine.match_checks import Assessment
    from napari_s2dc.engine.self_check import SelfCheck
    from napari_s2dc.widgets.session import Embedded

__all__ = ["check_itself", "check_mirrored", "match_two", "unmatched_of"]


def match_two(
    a: Embedded, b: Embedded, chosen: dict[str, Any], align: bool
) -> Generator[Any, None, tuple[Match, Assessment, tuple[np.ndarray, np.ndarray]]]:
    """Match two scans with the settings that were chosen, in one pose where `align` says so.

    Returns
    -------
    match : Match
        A with B.
    assessment : Assessment
        What it is worth.
    unmatched : tuple of two np.ndarray
        As :func:`unmatched_of` gives it.
    """
    from napari_s2dc.engine.aligned_match import match_aligned
    from napari_s2dc.engine.loading import load_optimisers
    from napari_s2dc.engine.match import MatchSettings, match_embeddings
    from napari_s2dc.engine.match_checks import assess, kind_of
    from napari_s2dc.engine.progress import Progress

    load_optimisers()
    yield Progress(0, 0, "plans")
    settings = MatchSettings(**chosen)
    if align:
        match = yield from match_aligned(
            (a.embedding, b.embedding),
            (a.source.load(), b.source.load()),
            a.encoder.network,
            a.settings,
            settings,
        )
    else:
        match = match_embeddings(a.embedding, b.embedding, settings)
    yield Progress(0, 0, "plans")
    one, other = (kind_of(embedded.source.sample()) for embedded in (a, b))
    return match, assess(match, kinds=(one, other)), unmatched_of(match)


def check_itself(
    a: Embedded, chosen: dict[str, Any], align: bool, seed: int
) -> Generator[Any, None, tuple[SelfCheck, Assessment, tuple[np.ndarray, np.ndarray]]]:
    """Match a scan with a random view of itself; returns the like of :func:`match_two`."""
    from napari_s2dc.engine.loading import load_optimisers
    from napari_s2dc.engine.match import MatchSettings
    from napari_s2dc.engine.match_checks import assess
    from napari_s2dc.engine.self_check import self_check

    load_optimisers()
    check = yield from self_check(
        a.source.load(),
        a.encoder.network,
        a.settings,
        matching=MatchSettings(**chosen),
        align=align,
        seed=seed,
        embedding=a.embedding,
    )
    return check, assess(check.match), unmatched_of(check.match)


def check_mirrored(
    match: Match, a: Embedded, b: Embedded, chosen: dict[str, Any]
) -> Generator[Any, None, str]:
    """Look whether the mirrored moving scan would fit better; a sentence if so."""
    from napari_s2dc.engine.match import MatchSettings
    from napari_s2dc.engine.mirror_check import embed_mirrored, mirror_warning

    images = a.source.load(), b.source.load()
    mirrored = yield from embed_mirrored(images[0], a.encoder.network, a.settings)
    return (yield from mirror_warning(match, mirrored, images, MatchSettings(**chosen)))


def unmatched_of(match: Match) -> tuple[np.ndarray, np.ndarray]:
    """Share of each patch of A and of B without a partner, 0 in the background.

    It sums the whole plan, which is too much for the window's thread.
    """
    lost, new = (np.nan_to_num(share.numpy()) for share in match.unmatched())
    return lost, new
