"""The scatter shows the chosen scan and nothing else, by components or by UMAP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.embed_tab import UMAP
from tests.gui.conftest import add_phantom, embed


def test_dots_of_another_encoder_do_not_stay(
    embedded: Any, scan: Any, viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    import torch

    from napari_s2dc.method.encoder import SwinEncoder

    torch.manual_seed(1)
    SwinEncoder.from_size("tiny", window_size=4).save(tmp_path / "second.safetensors", {})
    first = embedded.scatter.tokens.copy()
    points = embedded.embed_tab.scatter.pixels().copy()
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
    np.testing.assert_allclose(embedded.embed_tab.scatter.pixels(), points)


def test_dots_by_umap(embedded: Any, scan: Any, qtbot: Any) -> None:
    pytest.importorskip("umap")
    tab = embedded.embed_tab
    before = tab.scatter.pixels().copy()
    tab.dots.setCurrentIndex(tab.dots.findData(UMAP))
    qtbot.waitUntil(lambda: not np.array_equal(tab.scatter.pixels(), before), timeout=120_000)
    by_umap = tab.scatter.pixels().copy()
    assert len(by_umap) == len(before)
    tab.dots.setCurrentIndex(0)
    qtbot.waitUntil(lambda: np.allclose(tab.scatter.pixels(), before), timeout=20_000)
    tab.dots.setCurrentIndex(tab.dots.findData(UMAP))  # known by now
    assert not embedded.jobs.is_running("umap")
    qtbot.waitUntil(lambda: np.allclose(tab.scatter.pixels(), by_umap), timeout=20_000)


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
