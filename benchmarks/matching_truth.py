"""Matching with known truth: random affine views of real scans, ours beside other descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.descriptors import mind, raw_patches
from benchmarks.report import table
from napari_s2dc.engine.aligned_match import match_aligned
from napari_s2dc.engine.embed import Embedding, EmbedSettings, embed_volume
from napari_s2dc.engine.match import (
    Match,
    MatchSettings,
    foreground_index,
    match_embeddings,
    places_of,
    scores_of,
)
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import KnownView, SelfCheck, judge, known_view
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import normalize
from napari_s2dc.volumes.volume import Volume


def nearest(known: KnownView, settings: MatchSettings | None = None) -> Match:
    """Match every patch to the one with the highest score, each on its own.

    Scores are cosine similarities, less the spatial prior of `settings` where they are given.
    """
    a, b = known.scan, known.view
    index_a, index_b = foreground_index(a), foreground_index(b)
    settings = settings or MatchSettings(prior=None)
    places = places_of(a, b, index_a, index_b, settings)
    scores = scores_of(a.unit()[index_a] @ b.unit()[index_b].mT, places, settings)
    best = scores.argmax(1, keepdim=True)
    mass = torch.zeros(len(index_a), len(index_b)).scatter_(1, best, 1.0)
    return Match(a, b, index_a, index_b, None, mass)


def by_map(match: Match) -> Match:
    """Match every patch to the one nearest to where the map of an aligned match puts it.

    What the registration alone finds. A match without a map is returned as it is.
    """
    if match.matrix is None:
        return match
    a, b, index_a, index_b = match.a, match.b, match.index_a, match.index_b
    places = places_of(a, b, index_a, index_b, MatchSettings(aligned_prior=1.0), match.matrix)
    assert places is not None
    best = torch.cdist(*places).argmin(1, keepdim=True)
    mass = torch.zeros(len(index_a), len(index_b)).scatter_(1, best, 1.0)
    return Match(a, b, index_a, index_b, None, mass, match.matrix)


def described(
    known: KnownView, volume: Volume, descriptor: Callable[[np.ndarray, int], torch.Tensor]
) -> KnownView:
    """Replace the features of both by a descriptor of their intensities."""
    stride, preset = known.scan.stride, known.scan.metadata["preset"]
    images = [normalize(array, preset) for array in (volume.array, known.image)]
    scan, view = (
        replace(embedding, features=descriptor(image, stride))
        for embedding, image in zip((known.scan, known.view), images, strict=True)
    )
    return replace(known, scan=scan, view=view)


# How the prior weighs against classical similarities: the best of 0.02, 0.05, 0.1, 0.2 and 0.4 on
# views of totalseg_ct and mouse_brain.
MIND_MATCHING = MatchSettings(temperature=0.1)
RAW_MATCHING = MatchSettings(temperature=0.4)

OURS, MAP_ALONE = "ours", "the map of ours alone"
"""As ``s2dc match`` does, and the patch nearest to where its registration puts each."""

WAYS: dict[str, Callable[[KnownView, Volume], Match]] = {
    "ours, as the scans lie": lambda known, _: match_embeddings(known.scan, known.view),
    "ours, as they lie, without the prior": lambda known, _: match_embeddings(
        known.scan, known.view, MatchSettings(prior=None)
    ),
    "nearest neighbour, same features": lambda known, _: nearest(known),
    "nearest neighbour, same features, our prior": lambda known, _: nearest(known, MatchSettings()),
    "nearest neighbour, MIND": lambda known, volume: nearest(described(known, volume, mind)),
    "nearest neighbour, MIND, our prior": lambda known, volume: nearest(
        described(known, volume, mind), MIND_MATCHING
    ),
    "nearest neighbour, raw patches": lambda known, volume: nearest(
        described(known, volume, raw_patches)
    ),
    "nearest neighbour, raw patches, our prior": lambda known, volume: nearest(
        described(known, volume, raw_patches), RAW_MATCHING
    ),
}

FIRST_SEED = 100
"""Temperature, prior and dustbin were chosen on views of seeds 0 to 5."""


def random_views(
    volume: Volume, encoder: SwinEncoder, embedding: Embedding, seeds: Iterable[int]
) -> Iterator[tuple[bool, KnownView]]:
    """Give random views of a scan, and whether each is in-plane, which every second one is.

    Parameters
    ----------
    volume : Volume
        Scan.
    encoder : SwinEncoder
        Embeds the views.
    embedding : Embedding
        Of the scan, by the default settings.
    seeds : iterable of int
        One for each view; even ones are in-plane.
    """
    for seed in seeds:
        in_plane = seed % 2 == 0
        steps = known_view(
            volume, encoder, EmbedSettings(), in_plane=in_plane, seed=seed, embedding=embedding
        )
        yield in_plane, finish(steps)


def departures(checks: Sequence[SelfCheck]) -> tuple[str, float]:
    """Judge how the dustbin did over several views.

    Returns
    -------
    found : str
        Share of the patches that left the picture that were left without a partner.
    wrong : float
        Share of all patches decided wrong between partner and none, mean over the views.
    """
    gone = sum(check.gone for check in checks)
    found = sum(check.dustbin_found * check.gone for check in checks if check.gone)
    wrong = 1 - float(np.mean([check.dustbin_right for check in checks]))
    return f"{found / gone:.2f} of {gone}" if gone else "none left", wrong


def known_truth(name: str, volume: Volume, encoder: SwinEncoder, views: int) -> str:
    """Tabulate accuracy and error over random views, in-plane and 3D.

    Parameters
    ----------
    name : str
        Of the data set.
    volume : Volume
        Scan.
    encoder : SwinEncoder
        Embeds scan and views.
    views : int
        Random views; every second one is in-plane.
    """
    embedding = finish(embed_volume(volume, encoder, EmbedSettings()))
    found: dict[tuple[bool, str], list[SelfCheck]] = {}
    seeds = range(FIRST_SEED, FIRST_SEED + views)
    for in_plane, known in random_views(volume, encoder, embedding, seeds):
        images = (volume, known.volume)
        steps = match_aligned((known.scan, known.view), images, encoder, EmbedSettings())
        aligned = finish(steps)
        matches = {OURS: aligned, MAP_ALONE: by_map(aligned)}
        matches |= {way: match(known, volume) for way, match in WAYS.items()}
        for way, match in matches.items():
            found.setdefault((in_plane, way), []).append(judge(known, match))
    rows = []
    for (in_plane, way), checks in found.items():
        accuracy = [check.accuracy for check in checks]
        noticed, wrong = departures(checks)
        rows.append(
            [
                "in-plane" if in_plane else "3D",
                way,
                f"{np.mean(accuracy):.3f} ± {np.std(accuracy):.3f}",
                f"{np.mean([check.median_mm for check in checks]):.2f}",
                f"{np.mean([check.mean_mm for check in checks]):.2f}",
                f"{noticed} ({wrong:.3f} wrong)",
            ]
        )
    patches = int(embedding.foreground.sum())
    side_mm = " × ".join(f"{embedding.stride * side:.3g}" for side in volume.spacing_mm)
    return "\n\n".join(
        [
            f"**{name}**: {patches} patches of {side_mm} mm, {views} views.",
            table(
                [
                    "views",
                    "way",
                    "matching accuracy",
                    "median error, mm",
                    "mean error, mm",
                    "of those that left, found",
                ],
                rows,
            ),
        ]
    )
