"""Patches laid out in a plane by UMAP, where the extra is installed."""

from __future__ import annotations

from threading import Lock

import numpy as np

from napari_s2dc.engine.progress import Progress, Steps
from napari_s2dc.errors import ConfigurationError

__all__ = ["umap_layout"]

_NEIGHBOURS = 15
_LEAST_TOKENS = 4
_TURN_SECONDS = 0.1
"""How often it looks for being closed while another layout is made."""

_one_at_a_time = Lock()
"""numba's default thread pool must not be entered by two threads: it ends the process."""


def umap_layout(features: np.ndarray, start: np.ndarray, seed: int = 0) -> Steps[np.ndarray]:
    """Lay patches out so that alike ones lie together, one layout of the process at a time.

    It can be cancelled while it waits for its turn, not while the layout is made.

    Parameters
    ----------
    features : np.ndarray (n, C)
        Unit features.
    start : np.ndarray (n, 2)
        Places to begin from, such as the first two principal components: so that the picture
        has their orientation and is the same every time.
    seed : int
        Of the layout's random steps.

    Returns
    -------
    np.ndarray (n, 2)
        float32.

    Raises
    ------
    ConfigurationError
        umap-learn is not installed.
    """
    if len(features) < _LEAST_TOKENS:
        return np.asarray(start, dtype=np.float32)
    while not _one_at_a_time.acquire(timeout=_TURN_SECONDS):
        yield Progress(0, 0, "layouts")
    try:
        yield Progress(0, 0, "layouts")  # the last chance: it may have been cancelled meanwhile
        return _fit(features, start, seed)
    finally:
        _one_at_a_time.release()


def _fit(features: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError as error:
        raise ConfigurationError(
            "UMAP is not installed.", 'Install it: pip install "napari-s2dc[umap]".'
        ) from error
    spread = np.maximum(np.std(start, axis=0), 1e-9)
    layout = UMAP(
        n_neighbors=min(_NEIGHBOURS, len(features) - 1),
        init=np.asarray((start - start.mean(axis=0)) / spread, dtype=np.float32),
        random_state=seed,
        n_jobs=1,
    ).fit_transform(features)
    return np.asarray(layout, dtype=np.float32)
