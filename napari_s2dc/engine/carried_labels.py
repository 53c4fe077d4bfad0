"""Labels carried to scans that have none, so that fine-tuning learns from those too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_s2dc.engine.alignment import LEAST_CONFIDENCE
from napari_s2dc.engine.embed import embed_volume
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.fewshot_settings import FewshotSettings
from napari_s2dc.engine.labelled_scans import LabelledScan
from napari_s2dc.engine.match import Match, match_embeddings
from napari_s2dc.engine.progress import Progress, Steps, as_one
from napari_s2dc.engine.transfer import fuse, transfer_labels
from napari_s2dc.errors import S2DCError
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import read_volume
from napari_s2dc.volumes.preprocess import resample
from napari_s2dc.volumes.volume import Volume

__all__ = ["CarriedLabels", "carry_labels"]

_ATLASES = 3
"""Labelled scans whose labels are carried to a scan: those that match it best."""


@dataclass(frozen=True)
class CarriedLabels:
    """Scans with labels that were carried to them.

    Parameters
    ----------
    scans : tuple of LabelledScan
        Labels like those of the labelled scans; where nothing is known, they have a label that
        none of those have, or 0 where that means unlabelled.
    left_out : tuple of str
        One sentence for every scan that could not be used.
    """

    scans: tuple[LabelledScan, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Atlas:
    scan: LabelledScan
    labels: Volume
    embedding: Embedding


def carry_labels(
    labelled: Sequence[LabelledScan],
    unlabelled: Sequence[Path],
    encoder: SwinEncoder,
    settings: FewshotSettings,
) -> Steps[CarriedLabels]:
    """Match scans with labelled ones and carry the labels to them.

    Parameters
    ----------
    labelled : sequence of LabelledScan
        On the grid of the model.
    unlabelled : sequence of Path
        Scans of the same kind. Of more than ``finetune.carried_scans``, so many are drawn.
    encoder : SwinEncoder
        Pretrained; its features are matched.
    settings : FewshotSettings
        Of these, spacing, preset, device, seed, what 0 means, and how many scans are used.

    Yields
    ------
    Progress
        Scans that are done.

    Returns
    -------
    CarriedLabels
        On the grid of the model.

    Raises
    ------
    S2DCError
        Labels could be carried to none of the scans.

    Notes
    -----
    The way of :func:`napari_s2dc.engine.transfer.transfer_labels`: features are matched by optimal
    transport, the map that most pairs agree on is refined on both scans. Several labelled scans
    vote.
    """
    chosen = _draw(unlabelled, settings)
    total = len(labelled) + len(chosen)
    atlases = []
    for number, scan in enumerate(labelled):
        at = Progress(number, total, "scans")
        embedding = yield from as_one(embed_volume(scan.image, encoder, _embedding(settings)), at)
        atlases.append(_Atlas(scan, _with_outside(scan.labels, settings), embedding))
    unknown = 1 + max(int(scan.labels.array.max()) for scan in labelled)
    scans, left_out = [], []
    for number, path in enumerate(chosen, len(labelled)):
        at = Progress(number, total, "scans")
        try:
            image = read_volume(path)
            if settings.spacing_mm is not None:
                image = resample(image, settings.spacing_mm)
            labels = yield from as_one(_carried_to(image, atlases, encoder, settings), at)
        except (S2DCError, OSError, EOFError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            left_out.append(f"No labels could be carried to {path}: {reason}")
            continue
        scans.append(LabelledScan(image, _without_outside(labels, settings, unknown)))
    yield Progress(total, total, "scans")
    if not scans:
        raise S2DCError(
            f"Labels could be carried to none of {len(chosen)} unlabelled scans. "
            + " ".join(left_out[:1]),
            "Use an encoder that was pretrained on such scans, or learn from the labelled ones "
            "alone.",
        )
    return CarriedLabels(tuple(scans), tuple(left_out))


def _draw(paths: Sequence[Path], settings: FewshotSettings) -> list[Path]:
    """Draw as many scans as are wanted, the same with the same seed."""
    most = settings.finetune.carried_scans
    if len(paths) <= most:
        return list(paths)
    random = np.random.default_rng(settings.seed)
    return [paths[place] for place in sorted(random.permutation(len(paths))[:most])]


def _embedding(settings: FewshotSettings) -> EmbedSettings:
    return EmbedSettings(preset=settings.preset, device=settings.device)


def _carried_to(
    image: Volume, atlases: Sequence[_Atlas], encoder: SwinEncoder, settings: FewshotSettings
) -> Steps[Volume]:
    embedding = yield from embed_volume(image, encoder, _embedding(settings))
    matches = [(match_embeddings(one.embedding, embedding), one) for one in atlases]
    matches.sort(key=lambda pair: -_confident(pair[0]))
    transfers, reasons = [], []
    for match, atlas in matches[:_ATLASES]:
        try:
            transfers.append(
                (yield from transfer_labels(match, atlas.labels, atlas.scan.image, image))
            )
        except S2DCError as error:
            reasons.append(error)
    if not transfers:
        raise reasons[0]
    return fuse(transfers).labels if len(transfers) > 1 else transfers[0].labels


def _confident(match: Match) -> int:
    return len(match.pairs().best(least=LEAST_CONFIDENCE, mutual=True))


def _with_outside(labels: Volume, settings: FewshotSettings) -> Volume:
    """Labels of which 0 stands for what lies outside of the labelled scan, and is not known.

    Where 0 means background, all are one higher; where it means unlabelled, it is that already.
    """
    if settings.zero == "unlabelled":
        return labels
    return labels.with_array(labels.array.astype(np.int32) + 1)


def _without_outside(labels: Volume, settings: FewshotSettings, unknown: int) -> Volume:
    if settings.zero == "unlabelled":
        return labels
    return labels.with_array(np.where(labels.array == 0, unknown, labels.array - 1))
