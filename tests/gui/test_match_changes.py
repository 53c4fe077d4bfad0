"""A match among changes: the next match, moved layers, maps of several, the user's choices."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import numpy as np
import pytest

from napari_s2dc.widgets.workbench import Workbench
from tests.gui.conftest import add_labels, match, named

WAIT_MS = 60_000


# --------------------------------------------------------------------------- another match
def test_a_match_stays_until_the_next_one_has_come(
    matched: Workbench, viewer: Any, qtbot: Any, held: Event, hold: Any
) -> None:
    from napari_s2dc.engine import match as engine

    hold(engine, "match_embeddings")
    first = matched.matching.scans
    matched.match_tab.match_button.click()
    assert matched.jobs.is_running("match")
    matched.jobs.cancel("match")
    held.set()
    qtbot.waitUntil(lambda: not matched.jobs.is_running("match"), timeout=WAIT_MS)
    assert matched.matching.scans is first
    assert len(named(viewer, "matched patches").data) > 5
    match(matched, qtbot)
    assert matched.matching.scans is not first
    assert len(named(viewer, "matched patches").data) > 5


def test_the_next_match_ends_a_transfer_of_the_one_before(
    matched: Workbench,
    scan: Any,
    viewer: Any,
    qtbot: Any,
    held: Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from napari_s2dc.engine import transfer

    steps: list[int] = []

    def endless(*_: Any) -> Iterator[Any]:
        from napari_s2dc.engine.progress import Progress

        assert held.wait(WAIT_MS / 1000)
        while True:
            steps.append(1)
            yield Progress(0, 1, "steps")

    monkeypatch.setattr(transfer, "transfer_labels", endless)
    matched.match_tab.labels.choose(add_labels(viewer, scan))
    matched.match_tab.transfer_button.click()
    assert matched.jobs.is_running("transfer")
    matched.session.keep(scan, matched.session.embedded(scan))  # drops the match
    assert matched.matching.scans is None
    held.set()
    qtbot.waitUntil(lambda: not matched.jobs.is_running("transfer"), timeout=WAIT_MS)
    assert len(steps) <= 1
    assert not [layer for layer in viewer.layers if layer.name.endswith("labels from torso 1")]


# ----------------------------------------------------------------------------- moved layers
@pytest.mark.parametrize("which", ["moving", "copy", "reference"])
def test_segments_end_where_a_scan_was_moved_to(
    matched: Workbench, scan: Any, other: Any, viewer: Any, qtbot: Any, which: str
) -> None:
    if which == "reference":
        matched.match_tab.beside.click()
    scans, lines = matched.matching.scans, named(viewer, "matched patches")
    shown = other if which == "reference" else named(viewer, "side by side")
    best = scans.pairs.best(matched.match_tab.pairs.number.value(), mutual=True)

    def off() -> float:
        ends = [lines.data_to_world(start + along) for start, along in lines.data]
        wanted = [shown.data_to_world(voxel) for voxel in best.voxel_b]
        return float(np.abs(np.subtract(ends, wanted)).max())

    assert off() < 0.05
    layer = scan if which == "moving" else shown
    for _ in range(3):
        layer.translate = np.add(layer.translate, (4, 5, 20))
    qtbot.waitUntil(lambda: off() < 0.05, timeout=WAIT_MS)
    starts = [lines.data_to_world(line[0]) for line in lines.data]
    wanted = [scan.data_to_world(voxel) for voxel in best.voxel_a]
    np.testing.assert_allclose(starts, wanted, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
@pytest.mark.parametrize("which", ["moving", "reference"])
def test_scans_in_other_units_lie_together(
    matched: Workbench, scan: Any, other: Any, viewer: Any, qtbot: Any, which: str
) -> None:
    tab, pairs = matched.match_tab, matched.matching.scans.pairs.best(50, mutual=True)
    tab.beside.click()
    layer = scan if which == "moving" else other
    layer.scale, layer.translate = layer.scale * 1000, layer.translate * 1000
    layer.units = ("um",) * 3
    tab.pairs.number.setValue(50)
    tab.pairs.changed.emit()
    lines = named(viewer, "matched patches")

    def mm(layer: Any, voxel: Any) -> Any:
        size = 0.001 if str(layer.units[0]) == "micrometer" else 1.0
        return np.multiply(layer.data_to_world(voxel), size)

    def off(shown: Any) -> float:
        ends = [mm(lines, start + along) for start, along in lines.data]
        return float(np.abs(np.subtract(ends, [mm(shown, one) for one in pairs.voxel_b])).max())

    assert off(other) < 0.05
    tab.beside.click()
    lines = named(viewer, "matched patches")
    beside = named(viewer, "side by side")
    assert off(beside) < 0.05
    gap = mm(beside, (0, 0, -0.5))[2] - mm(scan, (0, 0, scan.data.shape[2] - 0.5))[2]
    assert 0 < gap < 0.1 * 3 * scan.data.shape[2]
    apart = [np.linalg.norm(mm(scan, a) - mm(other, b)) for a, b in pairs_of(pairs)]
    tab.apply_button.click()
    after = [np.linalg.norm(mm(scan, a) - mm(other, b)) for a, b in pairs_of(pairs)]
    assert np.median(after) < 0.2 * np.median(apart)


def pairs_of(pairs: Any) -> list[tuple[Any, Any]]:
    """Give the voxels that belong together."""
    return list(zip(pairs.voxel_a, pairs.voxel_b, strict=True))


# ------------------------------------------------------------------------------------- maps
@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing:UserWarning")
def test_every_layer_has_a_map_of_its_own(
    matched: Workbench, scan: Any, other: Any, qtbot: Any
) -> None:
    tab = matched.match_tab
    before = [np.array(layer.affine.affine_matrix) for layer in (scan, other)]
    tab.apply_button.click()
    assert not tab.back_button.isVisibleTo(tab)
    moved = np.array(scan.affine.affine_matrix)
    tab.moving.choose(other)
    tab.reference.choose(scan)
    match(matched, qtbot)
    assert tab.apply_button.text() == "Apply the map to torso 2"
    assert tab.back_button.text() == "Undo the map of torso 1"
    tab.beside.setChecked(True)
    np.testing.assert_array_equal(scan.affine.affine_matrix, moved)  # it is none of this match
    tab.apply_button.click()
    assert tab.apply_button.text() == "Undo the map of torso 2"
    assert not np.allclose(other.affine.affine_matrix, before[1])
    tab.back_button.click()
    np.testing.assert_array_equal(scan.affine.affine_matrix, before[0])
    assert not tab.back_button.isVisibleTo(tab)
    tab.apply_button.click()
    np.testing.assert_array_equal(other.affine.affine_matrix, before[1])


# ---------------------------------------------------------------------------------- choices
def test_the_number_of_pairs_stays_what_the_user_chose(matched: Workbench, qtbot: Any) -> None:
    tab = matched.match_tab
    tab.pairs.number.setValue(7)
    match(matched, qtbot)
    assert tab.pairs.number.value() == 7
    tab.show_match("", 0)
    tab.show_match("three pairs", 3)
    assert tab.pairs.number.value() == 3
    tab.show_match("many pairs", 900)
    assert tab.pairs.number.value() == 7


def test_temperatures_near_the_default_can_be_set(workbench: Workbench) -> None:
    spin = workbench.match_tab.temperature
    for value in (0.005, 0.015, 0.025):
        spin.setValue(value)
        assert workbench.match_tab.matching["temperature"] == pytest.approx(value)
    spin.setValue(0)
    spin.stepUp()
    assert workbench.match_tab.matching["temperature"] < 0.01


def test_a_device_chosen_while_devices_are_looked_up_stays(workbench: Workbench) -> None:
    device = workbench.header.device
    workbench._device = "cpu"  # as from the preferences, before the devices are known
    device.setCurrentIndex(device.findData("auto"))
    device.activated.emit(device.currentIndex())  # as when the user does it
    workbench.encoders.devices_known.emit()
    assert device.currentData() == "auto"


def test_patches_without_a_partner_are_summed_once(
    matched: Workbench, viewer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    match_class = type(matched.matching.scans.match)
    monkeypatch.delattr(match_class, "unmatched")  # sums the whole plan
    for _ in range(2):
        matched.match_tab.unmatched.click()
    matched.match_tab.unmatched.setChecked(True)
    matched.match_tab.beside.click()
    assert len([one for one in viewer.layers if one.name.endswith("without a partner")]) == 2
