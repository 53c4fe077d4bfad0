"""The dustbin: departures found against accuracy, by the similarity below which none is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from benchmarks.matching_truth import departures, random_views
from benchmarks.report import table
from napari_s2dc.engine.embed import EmbedSettings, embed_volume
from napari_s2dc.engine.match import MatchSettings, match_embeddings
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.self_check import KnownView, judge
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume

SIMILARITIES = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8)


def cut(known: KnownView) -> KnownView:
    """Take the first third of the tissue along z from the scan, and the last from the view."""
    scan, view = known.scan.foreground.clone(), known.view.foreground.clone()
    planes = torch.nonzero(scan.any(2).any(1))[:, 0]
    first, end = int(planes[0]), int(planes[-1]) + 1
    third = round((end - first) / 3)
    scan[: first + third] = False
    view[end - third :] = False
    own, there = scan.flatten(), view.flatten()
    had = known.partner >= 0
    has = own & had & there[known.partner.clamp(min=0)]
    return replace(
        known,
        scan=replace(known.scan, foreground=scan),
        view=replace(known.view, foreground=view),
        partner=torch.where(has, known.partner, -1),
        gone=own & (known.gone | (had & ~has)),
    )


def dustbin(
    name: str, volume: Volume, encoder: SwinEncoder, seeds: Sequence[int]
) -> list[list[str]]:
    """Judge every similarity on views as they are and cut; a row for each.

    Parameters
    ----------
    name : str
        Of the data set.
    volume : Volume
        Scan.
    encoder : SwinEncoder
        Embeds scan and views.
    seeds : sequence of int
        Of the views; every second one is in-plane.
    """
    embedding = finish(embed_volume(volume, encoder, EmbedSettings()))
    whole = [known for _, known in random_views(volume, encoder, embedding, seeds)]
    rows = []
    for kind, views in (("whole", whole), ("cut", [cut(known) for known in whole])):
        for similarity in SIMILARITIES:
            matching = MatchSettings(unmatched_similarity=similarity)
            checks = [judge(one, match_embeddings(one.scan, one.view, matching)) for one in views]
            found, wrong = departures(checks)
            accuracy = np.mean([check.accuracy for check in checks])
            rows.append([name, kind, f"{similarity:g}", f"{accuracy:.3f}", found, f"{wrong:.3f}"])
    return rows


def dustbin_table(rows: Sequence[Sequence[str]]) -> str:
    """Tabulate rows of :func:`dustbin`."""
    header = ["scan", "views", "similarity", "matching accuracy", "of those that left, found"]
    return table([*header, "partner or none wrong"], rows)
