"""Labels carried to scans that have none, so that fine-tuning learns from those too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_s2dc.engine.embed import embed_volume
from napari_s2dc.engine.embed_settings import EmbedSettings
from napari_s2dc.engine.embedding import Embedding
from napari_s2dc.engine.encode import out_of_memory
from napari_s2dc.engine.fewshot_settings import FewshotSettings, SegmentationClass
from napari_s2dc.engine.finetune_setup import check_settings
from napari_s2dc.engine.labelled_scans import LabelledScan, facts_of
from napari_s2dc.engine.match import Match, match_embeddings
from napari_s2dc.engine.match_checks import assess
from napari_s2dc.engine.progress import Progress, Steps, as_one
from napari_s2dc.engine.random_order import chance_of
from napari_s2dc.engine.transfer import Transfer, fuse, transfer_labels
from napari_s2dc.errors import SCAN_ERRORS, S2DCError, reason_of
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.io import check_values, read_volume
from napari_s2dc.volumes.preprocess import resample
from napari_s2dc.volumes.volume import Volume

__all__ = ["CarriedLabels", "carry_labels"]

_ATLASES = 3
"""Labelled scans whose labels are carried to a scan: those that match it best."""
_OUTSIDE = 0
"""Carried label of what no labelled scan shows, or where none of them is labelled."""


@dataclass(frozen=True)
class CarriedLabels:
    """Scans with labels that were carried to them.

    Parameters
    ----------
    scans : tuple of LabelledScan
        Labels like those of the labelled scans; where nothing is known, they have one that stands
        for no class, or 0 where that means unlabelled.
    facts : tuple of dict
        Of every scan as its file has it, see
        :func:`napari_s2dc.engine.labelled_scans.facts_of`.
    left_out : tuple of str
        One sentence for every scan that could not be used.
    """

    scans: tuple[LabelledScan, ...] = ()
    facts: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()

    def without_scans(self) -> CarriedLabels:
        """Keep what is noted in a model, not the voxels."""
        return replace(self, scans=())


@dataclass(frozen=True, eq=False)
class _Atlas:
    """A labelled scan as labels are carried from it.

    Parameters
    ----------
    image, labels : Volume
        On one grid; of the labels, ``_OUTSIDE`` means that nothing is known.
    embedding : Embedding
        Of the image.
    """

    image: Volume
    labels: Volume
    embedding: Embedding


def carry_labels(
    labelled: Sequence[LabelledScan],
    unlabelled: Sequence[Path],
    encoder: SwinEncoder,
    classes: Sequence[SegmentationClass],
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
    classes : sequence of SegmentationClass
        What is learned.
    settings : FewshotSettings
        Of these, spacing, preset, device, seed, what 0 means, and how many scans are used.

    Yields
    ------
    Progress
        Scans that are done.

    Returns
    -------
    CarriedLabels
        Resampled to the spacing of the settings, or of the first labelled scan.

    Raises
    ------
    S2DCError
        A setting cannot be used, or labels could be carried to none of the scans.

    Notes
    -----
    The way of :func:`napari_s2dc.engine.transfer.transfer_labels`: features are matched by optimal
    transport, the map that most pairs agree on is refined on both scans. The three labelled scans
    that match best vote. A match that :func:`napari_s2dc.engine.match_checks.assess` doubts is not
    used, nor labels under which the intensities hardly agree.
    """
    check_settings(settings.finetune)
    chosen = _draw(unlabelled, settings)
    total = len(labelled) + len(chosen)
    atlases = []
    for number, scan in enumerate(labelled):
        steps = embed_volume(scan.image, encoder, _embedding(settings))
        embedding = yield from as_one(steps, Progress(number, total, "scans"))
        atlases.append(_Atlas(scan.image, _with_outside(scan.labels, settings), embedding))
    labels = [int(scan.labels.array.max()) for scan in labelled]
    unknown = 1 + max(*labels, *(one.label for one in classes))
    spacing_mm = settings.spacing_mm or labelled[0].image.spacing_mm
    scans, facts, left_out = [], [], []
    for number, path in enumerate(chosen, len(labelled)):
        try:
            image = read_volume(path)
            check_values(image)
            about = facts_of(image)
            image = resample(image, spacing_mm)
            steps_of_one = _carried_to(image, atlases, encoder, settings)
            found = yield from as_one(steps_of_one, Progress(number, total, "scans"))
            scans.append(LabelledScan(image, _without_outside(found, settings, unknown)))
            facts.append(about)
        except (*SCAN_ERRORS, RuntimeError) as error:
            if not isinstance(error, SCAN_ERRORS) and not out_of_memory(error):
                raise
            # Without the hint, which is about matching two scans by hand.
            reason = error.sentence if isinstance(error, S2DCError) else reason_of(error)
            left_out.append(f"No labels could be carried to {_place(path)}: {_short(reason, path)}")
    yield Progress(total, total, "scans")
    if not scans:
        raise S2DCError(
            f"Labels could be carried to none of {len(chosen)} unlabelled scans. "
            + " ".join(left_out[:1]),
            "Use scans that show the same, or an encoder that was pretrained on such scans, or "
            "learn from the labelled ones alone.",
        )
    return CarriedLabels(tuple(scans), tuple(facts), tuple(left_out))


def _draw(paths: Sequence[Path], settings: FewshotSettings) -> list[Path]:
    """Draw as many scans as are wanted, the same with the same seed, in their order."""

    def chance(path: Path) -> tuple[bytes, bytes]:
        # The whole path where folders give their scans one name; else it may lie anywhere.
        return chance_of(path.name, settings.seed), chance_of(path.as_posix(), settings.seed)

    drawn = sorted(paths, key=chance)
    kept = set(drawn[: settings.finetune.carried_scans])
    return [path for path in paths if path in kept]


def _place(path: Path) -> str:
    """File and folder of a scan: a model keeps them, and is given to others."""
    return "/".join(path.resolve().parts[-2:])


def _short(reason: str, path: Path) -> str:
    """Take the folders above out of a sentence that names the scan."""
    return reason.replace(str(path), _place(path)) if path.is_absolute() else reason


def _embedding(settings: FewshotSettings) -> EmbedSettings:
    return EmbedSettings(preset=settings.preset, device=settings.device)


def _carried_to(
    image: Volume, atlases: Sequence[_Atlas], encoder: SwinEncoder, settings: FewshotSettings
) -> Steps[Volume]:
    best: list[tuple[int, Match, _Atlas]] = []
    reasons, alike = [], []
    for atlas in atlases:
        # Where both say it; from the values of a crop without air it would be a guess. From
        # what is carried from a CT to a T2 a network learns to reach Dice 0.48; s2dc transfer 0.74.
        one, other = atlas.image.modality, image.modality
        if one and other and one != other:
            reasons.append(
                f"{atlas.image.name} is {one.upper()} and {image.name} {other.upper()}, and labels "
                "are carried within one kind only."
            )
        else:
            alike.append(atlas)
    if alike:
        embedding = yield from embed_volume(image, encoder, _embedding(settings))
    for number, atlas in enumerate(alike):
        yield Progress(number, len(alike), "labelled scans")
        match = match_embeddings(atlas.embedding, embedding)
        about = assess(match)
        if about.warnings:
            reasons.append(about.warnings[0])
            continue
        best.append((about.confident, match, atlas))
        best.sort(key=lambda found: -found[0])
        del best[_ATLASES:]  # a match of large scans takes much memory
    transfers = []
    for _, match, atlas in best:
        try:
            found = yield from transfer_labels(match, atlas.labels, atlas.image, image)
        except S2DCError as error:
            reasons.append(error.sentence)
            continue
        if found.doubt:
            reasons.append(found.doubt)
            continue
        transfers.append(_silent_where_unknown(found))
    if not transfers:
        raise S2DCError(reasons[-1])  # of a labelled scan of its kind, where there is one
    labels = fuse(transfers).labels if len(transfers) > 1 else transfers[0].labels
    if not (labels.array != _OUTSIDE).any():
        raise S2DCError("No voxel got a label.")
    return labels


def _silent_where_unknown(transfer: Transfer) -> Transfer:
    """Take the vote from what is not known: strokes of several scans seldom meet."""
    known = transfer.labels.array != _OUTSIDE
    return replace(transfer, confidence=transfer.confidence * known)


def _with_outside(labels: Volume, settings: FewshotSettings) -> Volume:
    """Labels of which ``_OUTSIDE`` means that nothing is known, as it does beyond the scan.

    Where 0 means background, all are one higher; where it means unlabelled, it is that already.
    """
    if settings.zero == "unlabelled":
        return labels
    kind = np.int64 if labels.array.dtype.itemsize >= 4 else np.int32
    return labels.with_array(labels.array.astype(kind) + 1)


def _without_outside(labels: Volume, settings: FewshotSettings, unknown: int) -> Volume:
    if settings.zero == "unlabelled":
        return labels
    found = np.where(labels.array == _OUTSIDE, unknown, labels.array - 1)
    return labels.with_array(found.astype(np.min_scalar_type(unknown)))
