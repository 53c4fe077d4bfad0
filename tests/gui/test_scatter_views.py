"""The scatter shows the chosen scan and nothing else, by components or by UMAP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.embed_tab import UMAP
from tests.gui.conftest import add_phantom, embed, threads_at_rest


def test_dots_of_another_encoder_do_not_stay(
    embedded: Any, scan: Any, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    import torch

    from napari_s2dc.method.encoder import SwinEncoder

    torch.manual_seed(1)
    SwinEncoder.from_size("tiny", window_size=4).save(tmp_path / "second.safetensors", {})
    first = embedded.scatter.tokens.copy()
    points = embedded.scatter._dots.points.copy()
    other = add_phantom(viewer, 2)
    embedded.header.volume.choose(other)
    assert len(embedded.embed_tab.scatter.pixels()) == 0  # not embedded yet
    embedded.encoders.load_encoder("second", str(tmp_path / "second.safetensors"))
    qtbot.waitUntil(lambda: embedded.session.encoder.name == "second", timeout=20_000)
    embed(embedded, other, qtbot)
    qtbot.waitUntil(lambda: len(embedded.scatter.tokens) > 0, timeout=20_000)
    mine = embedded.session.embedded(other).embedding.foreground.numpy().ravel()
    np.testing.assert_array_equal(embedded.scatter.tokens, np.flatnonzero(mine))
    # and back: each scan has the colours and dots of its own encoder
    embedded.header.volume.choose(scan)
    qtbot.waitUntil(lambda: np.array_equal(embedded.scatter.tokens, first), timeout=20_000)
    np.testing.assert_allclose(embedded.scatter._dots.points, points)


class Umap:
    """Stands in for umap-learn, which first compiles for half a minute; see the engine's tests."""

    def __init__(self) -> None:
        self.go = Event()
        self.go.set()
        self.fitted = 0
        self.module = ModuleType("umap")
        self.module.UMAP = self._make

    def _make(self, *, init: np.ndarray, **more: Any) -> Any:
        def fit(features: np.ndarray) -> np.ndarray:
            self.fitted += 1
            assert self.go.wait(60)
            return np.asarray(init)[:, ::-1] ** 3

        return SimpleNamespace(fit_transform=fit)


@pytest.fixture
def umap(monkeypatch: pytest.MonkeyPatch) -> Iterator[Umap]:
    stand_in = Umap()
    monkeypatch.setitem(sys.modules, "umap", stand_in.module)
    yield stand_in
    stand_in.go.set()


def choose_umap(workbench: Any) -> None:
    dots = workbench.embed_tab.dots
    dots.setCurrentIndex(dots.findData(UMAP))


def at_rest(workbench: Any) -> bool:
    return not any(workbench.jobs.is_running(name) for name in ("umap", "colours", "scatter"))


def test_dots_by_umap(embedded: Any, qtbot: Any, umap: Umap) -> None:
    scatter, tab = embedded.scatter, embedded.embed_tab
    by_components = scatter._dots.points.copy()
    choose_umap(embedded)
    qtbot.waitUntil(lambda: at_rest(embedded))
    by_umap = scatter._dots.points.copy()
    assert by_umap.shape == by_components.shape
    assert not np.allclose(by_umap, by_components)
    tab.dots.setCurrentIndex(0)
    qtbot.waitUntil(lambda: at_rest(embedded))
    np.testing.assert_array_equal(scatter._dots.points, by_components)
    choose_umap(embedded)  # known by now
    assert not embedded.jobs.is_running("umap")
    qtbot.waitUntil(lambda: at_rest(embedded))
    np.testing.assert_array_equal(scatter._dots.points, by_umap)
    assert umap.fitted == 1


def test_one_umap_is_made_whatever_is_changed_meanwhile(
    embedded: Any, qtbot: Any, umap: Umap
) -> None:
    tab = embedded.embed_tab
    anatomy = embedded.scatter._dots.anatomy.copy()
    umap.go.clear()
    choose_umap(embedded)
    qtbot.waitUntil(lambda: umap.fitted == 1)
    for triple in (2, 3, 2):
        tab.triple.setValue(triple)
        qtbot.waitUntil(lambda: not embedded.jobs.is_running("colours"))
    tab.dots.setCurrentIndex(0)
    choose_umap(embedded)
    assert embedded.jobs.is_due("umap")
    umap.go.set()
    qtbot.waitUntil(lambda: at_rest(embedded))
    assert umap.fitted == 1
    dots = embedded.scatter._dots
    basis = embedded.features.basis_of(dots.embedded)
    expected = basis.colours(dots.embedded.embedding, 1).reshape(-1, 3)[dots.tokens]
    np.testing.assert_array_equal(dots.anatomy, expected)  # those of the last triple
    assert (dots.anatomy != anatomy).any()


def test_a_umap_that_waits_for_another_can_be_cancelled(
    embedded: Any, scan: Any, viewer: Any, qtbot: Any, umap: Umap
) -> None:
    other = add_phantom(viewer, 2)
    embed(embedded, other, qtbot)
    umap.go.clear()
    choose_umap(embedded)
    qtbot.waitUntil(lambda: umap.fitted == 1)
    embedded.header.volume.choose(scan)
    qtbot.waitUntil(lambda: embedded.jobs.is_due("umap"))
    embedded.jobs.cancel("umap")
    qtbot.waitUntil(lambda: not embedded.jobs.is_running("umap"))
    umap.go.set()
    threads_at_rest(qtbot)
    assert umap.fitted == 1


def test_umap_that_is_not_installed_cannot_be_chosen(workbench: Any) -> None:
    dots = workbench.embed_tab.dots
    workbench.embed_tab.show_choices(slices=True, boxes=False, umap=False)
    entry = dots.model().item(dots.findData(UMAP))
    assert not entry.isEnabled()
    assert "napari-s2dc[umap]" in entry.toolTip()


def test_dots_take_the_colours_of_lazy_labels(
    embedded: Any, scan: Any, viewer: Any, qtbot: Any
) -> None:
    dask = pytest.importorskip("dask.array")
    organs = np.zeros(scan.data.shape, np.uint8)
    organs[16:] = 3
    labels = viewer.add_labels(
        dask.from_array(organs, chunks=16), name="lazy", scale=scan.scale,
        translate=scan.translate, units=scan.units,
    )  # fmt: skip
    tab = embedded.embed_tab
    tab.labels.choose(labels)
    tab.colouring.setCurrentIndex(2)
    wanted = (np.asarray(labels.get_color(3)[:3]) * 255).astype(np.uint8)
    upper = embedded.scatter.tokens // 36 >= 2
    qtbot.waitUntil(lambda: (tab.scatter._colours[upper] == wanted).all(), timeout=20_000)


def test_the_scan_may_be_removed_while_its_dots_are_placed(
    embedded: Any, scan: Any, viewer: Any, qtbot: Any
) -> None:
    embedded.scatter.draw()
    viewer.layers.remove(scan)
    qtbot.waitUntil(lambda: not embedded.jobs.is_running("scatter"), timeout=20_000)
    assert len(embedded.scatter.tokens) == 0
    embedded.embed_tab.scatter.lassoed.emit(np.ones(3, dtype=bool))
    assert not any("selected" in layer.name for layer in viewer.layers)
