from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from napari_s2dc.engine import umap_layout as module
from napari_s2dc.engine.progress import finish
from napari_s2dc.engine.umap_layout import umap_layout
from napari_s2dc.errors import ConfigurationError


def groups(count: int = 3, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(count), size)
    features = 8 * np.eye(16)[group] + random.normal(size=(count * size, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), group


@pytest.mark.slow  # numba compiles
def test_alike_patches_lie_together_and_the_seed_decides() -> None:
    pytest.importorskip("umap")
    features, group = groups()
    start = features[:, :2]
    layout = finish(umap_layout(features, start, seed=3))
    assert layout.shape == (len(features), 2)
    assert layout.dtype == np.float32
    distance = np.linalg.norm(layout[:, None] - layout[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).all()
    np.testing.assert_array_equal(layout, finish(umap_layout(features, start, seed=3)))


@pytest.mark.slow
def test_two_threads_wait_for_each_other() -> None:
    pytest.importorskip("umap")
    features, _ = groups(size=20)
    results: list[np.ndarray] = []

    def lay_out() -> None:
        results.append(finish(umap_layout(features, features[:, :2])))

    threads = [threading.Thread(target=lay_out) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(*results)


def test_a_handful_of_patches_stays_where_it_is() -> None:
    start = np.array([[0.0, 1], [2, 3]])
    np.testing.assert_array_equal(finish(umap_layout(np.eye(2, 8), start)), start)


def test_without_the_extra_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigurationError, match="UMAP is not installed"):
        finish(umap_layout(np.eye(8), np.eye(8)[:, :2]))


def test_what_is_closed_while_it_waits_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_fit", lambda features, start, seed: start)
    features = np.eye(8)
    first, second = (umap_layout(features, features[:, :2]) for _ in range(2))
    next(first)  # has its turn
    next(second)
    second.close()
    np.testing.assert_array_equal(finish(first), features[:, :2])
    np.testing.assert_array_equal(finish(umap_layout(features, features[:, :2])), features[:, :2])
