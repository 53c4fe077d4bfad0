"""Matching with known truth: random affine views of real scans, ours beside other descriptors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.descriptors import mind, raw_patches
from benchmarks.report import table
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.match import Match, foreground_index, match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import KnownView, SelfCheck, judge, known_view
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.preprocess import normalize
from napari_s2dc.volumes.volume import Volume


def nearest(known: KnownView) -> Match:
    """Match every patch to the one with the most similar features, each on its own."""
    a, b = known.scan, known.view
    index_a, index_b = foreground_index(a), foreground_index(b)
    best = (a.unit()[index_a] @ b.unit()[index_b].mT).argmax(1, keepdim=True)
    mass = torch.zeros(len(index_a), len(index_b)).scatter_(1, best, 1.0)
    return Match(a, b, index_a, index_b, None, mass)


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


WAYS: dict[str, Callable[[KnownView, Volume], Match]] = {
    "ours": lambda known, _: match_embeddings(known.scan, known.view),
    "nearest neighbour, same features": lambda known, _: nearest(known),
    "nearest neighbour, MIND": lambda known, volume: nearest(described(known, volume, mind)),
    "nearest neighbour, raw patches": lambda known, volume: nearest(
        described(known, volume, raw_patches)
    ),
}


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
    settings = EmbedSettings()
    embedding = finish(embed_volume(volume, encoder, settings))
    found: dict[tuple[bool, str], list[SelfCheck]] = {}
    for seed in range(views):
        in_plane = seed % 2 == 0
        known = finish(
            known_view(volume, encoder, settings, in_plane=in_plane, seed=seed, embedding=embedding)
        )
        for way, match in WAYS.items():
            found.setdefault((in_plane, way), []).append(judge(known, match(known, volume)))
    rows = []
    for (in_plane, way), checks in found.items():
        accuracy = [check.accuracy for check in checks]
        rows.append(
            [
                "in-plane" if in_plane else "3D",
                way,
                f"{np.mean(accuracy):.3f} ± {np.std(accuracy):.3f}",
                f"{np.mean([check.median_mm for check in checks]):.2f}",
                f"{np.mean([check.mean_mm for check in checks]):.2f}",
                f"{np.mean([check.dustbin_right for check in checks]):.3f}",
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
                    "partner or none right",
                ],
                rows,
            ),
        ]
    )
