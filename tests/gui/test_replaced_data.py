"""A layer that shows other data than was embedded: nothing of the old data is shown for it."""

from __future__ import annotations

from threading import Event
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_labels, add_phantom, embed, match, named, probe_at

SENTENCE = "The data of torso 1 was replaced: embed it again."


def results_of(viewer: Any, workbench: Workbench) -> list[str]:
    """Names of the result layers that are there."""
    return [layer.name for layer in viewer.layers if workbench.session.overlays.is_overlay(layer)]


def embed_again(workbench: Workbench, layer: Any, qtbot: Any) -> None:
    """Embed, and wait for colours in the place of those that were cleared."""
    workbench.header.volume.choose(layer)
    workbench.embed_tab.embed_button.click()
    qtbot.waitUntil(lambda: workbench.session.embedded(layer) is not None)
    qtbot.waitUntil(lambda: workbench.session.overlays.find(layer, "colours").data.any())


def test_the_embedding_and_what_was_made_of_it_go(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    told: list[Any] = []
    embedded.session.data_replaced.connect(told.append)
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    embedded.probe_tab.preview.setChecked(True)
    overlays = embedded.session.overlays
    qtbot.waitUntil(lambda: overlays.find(scan, "structure") is not None)
    embedded.embed_tab.clusters_button.click()
    qtbot.waitUntil(lambda: overlays.find(scan, "clusters") is not None)
    scan.data = np.ascontiguousarray(scan.data[::-1])
    assert embedded.session.embedded(scan) is None
    assert embedded.message.text() == SENTENCE
    assert results_of(viewer, embedded) == ["torso 1 – anatomy colours"]
    assert not overlays.find(scan, "colours").data.any()
    assert len(embedded.scatter.tokens) == 0
    assert not embedded.embed_tab.save_button.isEnabled()
    assert embedded.embed_tab.embed_button.isEnabled()
    assert embedded.probing.home is None
    scan.data = np.ascontiguousarray(scan.data[::-1])
    assert len(told) == 1
    embed_again(embedded, scan, qtbot)


def test_the_same_array_and_edits_within_it_keep_the_embedding(
    embedded: Workbench, scan: Any
) -> None:
    before = embedded.session.embedded(scan)
    scan.data = scan.data
    scan.refresh()
    scan.events.data(value=scan.data)
    assert embedded.session.embedded(scan) is before


def test_levels_of_a_multiscale_layer(
    workbench: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    levels = [np.asarray(scan.data), np.ascontiguousarray(scan.data[::2, ::2, ::2])]
    pyramid = viewer.add_image(levels, multiscale=True, name="pyramid", scale=(3, 3, 3))
    embed(workbench, pyramid, qtbot)
    pyramid.data = list(levels)
    assert workbench.session.embedded(pyramid) is not None
    pyramid.data = [levels[0] + 1, levels[1]]
    assert workbench.session.embedded(pyramid) is None


def test_another_embedded_scan_keeps_what_it_has(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    second = add_phantom(viewer, 2, translate=(0, 0, 400))
    embed(embedded, second, qtbot)
    probe_at(embedded, second, (20, 20, 20), qtbot)
    overlays = embedded.session.overlays
    assert overlays.find(scan, "similarity") is not None
    scan.data = scan.data.copy()
    assert overlays.find(scan, "similarity") is None
    assert not overlays.find(scan, "colours").data.any()
    assert overlays.find(second, "similarity") is not None
    assert overlays.find(second, "colours").data.any()
    assert embedded.probing.home is second


@pytest.mark.parametrize("which", ["moving", "reference"])
def test_a_match_of_the_old_data_goes(
    matched: Workbench, scan: Any, other: Any, viewer: Any, qtbot: Any, which: str
) -> None:
    matched.match_tab.labels.choose(add_labels(viewer, scan))
    replaced = scan if which == "moving" else other
    replaced.data = np.ascontiguousarray(replaced.data[:20])
    assert matched.matching.scans is None
    assert not [name for name in results_of(viewer, matched) if "match" in name]
    assert not matched.match_tab.transfer_button.isEnabled()
    assert not matched.match_tab.match_button.isEnabled()
    matched.transfers.transfer()
    assert not matched.jobs.is_running("transfer")
    assert "was replaced: embed it again" in matched.message.text()
    embed_again(matched, replaced, qtbot)
    match(matched, qtbot)
    assert len(named(viewer, "matched patches").data) > 0


def test_data_replaced_while_it_is_matched(
    pair: Workbench, other: Any, qtbot: Any, held: Event, hold: Any
) -> None:
    from napari_s2dc.engine import match as engine

    hold(engine, "match_embeddings")
    pair.match_tab.match_button.click()
    other.data = other.data.copy()
    held.set()
    qtbot.waitUntil(lambda: not pair.jobs.is_running("match"))
    assert pair.matching.scans is None
    assert pair.message.text() == (
        "The data of torso 2 was replaced, so the match of before is not shown."
    )


def test_data_replaced_while_it_is_embedded(
    workbench: Workbench, scan: Any, qtbot: Any, slow_windows: Any
) -> None:
    workbench.header.volume.choose(scan)
    workbench.embed_tab.embed_button.click()
    scan.data = scan.data.copy()
    slow_windows()
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("embed"))
    assert workbench.session.embedded(scan) is None
    assert workbench.message.text() == SENTENCE


def test_a_structure_of_another_size_is_not_written(
    embedded: Workbench, scan: Any, viewer: Any, qtbot: Any
) -> None:
    probe_at(embedded, scan, (20, 20, 20), qtbot)
    embedded.probe_tab.preview.setChecked(True)
    qtbot.waitUntil(embedded.probe_tab.add_button.isEnabled)
    with scan.events.data.blocker():  # whoever blocks it leaves us without a word
        scan.data = np.ascontiguousarray(scan.data[:20])
    before = len(viewer.layers)
    embedded.structures.add(3)
    assert len(viewer.layers) == before
    assert "has another size than the structure" in embedded.message.text()


def test_what_is_no_scan_any_more_cannot_be_embedded(
    workbench: Workbench, scan: Any, viewer: Any
) -> None:
    assert workbench.embed_tab.embed_button.isEnabled()
    scan.data = scan.data[:, :20, :20]
    assert workbench.header.volume.layer is scan
    assert workbench.embed_tab.embed_button.isEnabled()
    assert "torso" in workbench.embed_tab.embed_button.text()
    scan.data = scan.data[3]
    assert workbench.header.volume.layer is None
    assert not workbench.embed_tab.embed_button.isEnabled()
    assert not workbench.match_tab.moving.layers


def test_resolutions_follow_the_data(workbench: Workbench, scan: Any) -> None:
    level = workbench.header.level
    assert level.itemText(0) == "32 × 48 × 48"
    scan.data = np.ascontiguousarray(scan.data[:20])
    assert level.itemText(0) == "20 × 48 × 48"
