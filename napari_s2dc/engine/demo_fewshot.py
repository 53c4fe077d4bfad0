"""Few-shot step of the demo: one labelled slice of a scan, and the rest of it found by Quick."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_s2dc.engine.evaluate import evaluate_labels
from napari_s2dc.engine.fewshot import train_model
from napari_s2dc.engine.fewshot_settings import FewshotSettings
from napari_s2dc.engine.labelled_scans import LabelledScan
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.segment import segment_volume
from napari_s2dc.method.encoder import SwinEncoder
from napari_s2dc.volumes.volume import Volume

__all__ = ["FromOneSlice", "label_one_slice", "painted_over", "segment_from_one_slice"]

_BACKGROUND = 255
_LEAST_VOXELS = 40
"""Of an organ in the slice, for it to be labelled."""
_STRENGTH = 0.6


@dataclass(frozen=True, eq=False)
class FromOneSlice:
    """What became of one labelled slice.

    Parameters
    ----------
    found : np.ndarray (Z, Y, X)
        Organs; 0 is background.
    dice : float
        Mean of the labelled organs, over all other slices.
    colours : dict of int to tuple of float
        Red, green and blue of the organs.
    """

    found: np.ndarray
    dice: float
    colours: dict[int, tuple[float, float, float]]


def label_one_slice(organs: np.ndarray) -> np.ndarray:
    """Keep the labels of the axial slice that shows most organs.

    Parameters
    ----------
    organs : np.ndarray (Z, Y, X)
        Below 255; 0 is background.

    Returns
    -------
    np.ndarray (Z, Y, X)
        uint8; 0 where nothing is labelled, 255 for background.
    """
    sizes = np.stack([np.bincount(plane.ravel(), minlength=_BACKGROUND) for plane in organs])
    sizes[:, 0] = 0
    plane = int((sizes >= _LEAST_VOXELS).sum(axis=1).argmax())
    kept = np.isin(organs[plane], np.flatnonzero(sizes[plane] >= _LEAST_VOXELS))
    labels = np.zeros(organs.shape, np.uint8)
    labels[plane] = np.where(kept, organs[plane], _BACKGROUND)
    return labels


def segment_from_one_slice(scan: Volume, organs: np.ndarray, encoder: SwinEncoder) -> FromOneSlice:
    """Train Quick on one slice of a scan and segment all of it.

    Parameters
    ----------
    scan : Volume
        Raw intensities.
    organs : np.ndarray (Z, Y, X)
        True labels; those of the slice of :func:`label_one_slice` are learned.
    encoder : SwinEncoder
        Not changed.
    """
    labels = label_one_slice(organs)
    settings = FewshotSettings(
        zero="unlabelled", background=_BACKGROUND, preset="auto", device="cpu"
    )
    painted = LabelledScan(scan, scan.with_array(labels))
    model = finish(train_model([painted], encoder, settings))
    found = finish(segment_volume(scan, model, device="cpu")).labels
    known = [one.label for one in model.classes]
    judged = labels == 0
    score = evaluate_labels(
        scan.with_array(found * judged),
        scan.with_array(np.where(np.isin(organs, known), organs, 0) * judged),
    )
    return FromOneSlice(found, score.mean_dice, {one.label: one.colour for one in model.classes})


def painted_over(
    image: np.ndarray, labels: np.ndarray, colours: dict[int, tuple[float, float, float]]
) -> np.ndarray:
    """Colour the labels of a scan.

    Parameters
    ----------
    image : np.ndarray (Z, Y, X)
        0 to 1.
    labels : np.ndarray (Z, Y, X)
        Those without a colour are not shown.
    colours : dict
        Red, green and blue by label.

    Returns
    -------
    np.ndarray (Z, Y, X, 3)
        float32.
    """
    from skimage.color import label2rgb

    shown = np.where(np.isin(labels, list(colours)), labels, 0)
    there = [colours[int(label)] for label in np.unique(shown[shown > 0])]
    painted = label2rgb(shown, image, there or None, alpha=_STRENGTH, bg_label=0)
    # label2rgb darkens what has no label.
    return np.where((shown > 0)[..., None], painted, image[..., None]).astype(np.float32)
