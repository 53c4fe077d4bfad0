"""What users of ilastik have: a random forest on filters of several widths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from napari_s2dc.volumes.foreground import foreground_mask
from napari_s2dc.volumes.preprocess import normalize
from napari_s2dc.volumes.volume import Volume

TREES = 100
VOXELS = 100_000
"""Most voxels that a forest learns from, over all scans."""


@dataclass(frozen=True)
class Filtered:
    """Filter responses of a scan.

    Parameters
    ----------
    values : np.ndarray (N, F)
        float16: intensity, edges and texture at every voxel of `tissue`.
    tissue : np.ndarray (Z, Y, X)
        Where there are any: what is no air round the body. Air is background without asking.
    """

    values: np.ndarray
    tissue: np.ndarray


def filtered(image: Volume, preset: str) -> Filtered:
    """Compute intensity, gradient and Hessian eigenvalues at widths of 0.5 to 16 voxels.

    Parameters
    ----------
    image : Volume
        Scan with raw intensities.
    preset : str
        How they become [0, 1], so that one forest serves several scans.
    """
    tissue = foreground_mask(image.array)
    responses = multiscale_basic_features(normalize(image.array, preset), workers=1)
    return Filtered(responses[tissue].astype(np.float16), tissue)


def grow(
    scans: list[tuple[Filtered, np.ndarray]], seed: int, voxels: int = VOXELS
) -> RandomForestClassifier:
    """Fit a forest to labelled voxels.

    Parameters
    ----------
    scans : list of (Filtered, np.ndarray (Z, Y, X))
        With their labels, negative where a voxel is not labelled.
    seed : int
        Of the forest and the draw of voxels.
    voxels : int
        Most voxels learned from; drawn where there are more, as often as they occur.
    """
    values, labels = [], []
    for features, truth in scans:
        known = truth[features.tissue]
        values.append(features.values[known >= 0])
        labels.append(known[known >= 0])
    x, y = np.concatenate(values), np.concatenate(labels)
    drawn = np.random.default_rng(seed).permutation(len(y))[:voxels]
    forest = RandomForestClassifier(TREES, n_jobs=1, random_state=seed)
    return forest.fit(x[drawn].astype(np.float32), y[drawn])


def classify(forest: RandomForestClassifier, features: Filtered) -> np.ndarray:
    """Labels (Z, Y, X) int32 of a scan; 0 where there is no tissue."""
    found = np.zeros(features.tissue.shape, np.int32)
    found[features.tissue] = forest.predict(features.values.astype(np.float32))
    return found
