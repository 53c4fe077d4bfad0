"""Strokes survive a crash, and nothing is left after a session that ended as it should."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_s2dc.errors import S2DCError
from napari_s2dc.widgets import segment_autosave
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.segment_recovery import (
    KeptLabels,
    autosave_folder,
    left_behind,
    own_name,
    read_facts,
    read_labels,
)
from tests.gui.conftest import add_phantom, open_workbench
from tests.gui.segmenting import LUNG, MUSCLE, painted, settled, stroke, tick, trained

DEAD = own_name(0).split("-")[0] + "-4000000-1700000000-0.npz"
"""File of a process that is not there: Linux numbers them up to 4194304, at most."""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Keep labels in a folder of the test, and without a pause."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(segment_autosave, "_PAUSE_MS", 10)
    yield autosave_folder()
    segment_autosave._remove_own()
    segment_autosave._own.clear()


def kept(workbench: Any, folder: Path, qtbot: Any) -> Path:
    """Wait for the only file."""
    settled(workbench, qtbot)
    written(workbench, qtbot)
    (path,) = folder.iterdir()
    return path


def written(workbench: Any, qtbot: Any) -> None:
    """Wait until nothing is to be written any more."""

    def rests() -> bool:
        writes = any(name.startswith("writing") for name in workbench.jobs._running)
        return not (writes or workbench.segmenting.autosave._soon.isActive())

    qtbot.waitUntil(rests)


def test_strokes_and_classes_are_kept_and_come_back_after_a_crash(
    workbench: Any, viewer: Any, qtbot: Any, folder: Path
) -> None:
    layer = painted(workbench, qtbot)
    workbench.segmenting.painting._rename(LUNG, "lung")
    workbench.segmenting.painting._recolour(LUNG, (0.0, 1.0, 0.0))
    path = kept(workbench, folder, qtbot)
    assert left_behind(folder) == []  # this process lives
    facts = read_facts(path)
    assert facts.names[LUNG] == "lung"
    assert facts.colours[LUNG] == (0.0, 1.0, 0.0)
    array, extent, name = layer.data.copy(), layer.extent.world, layer.name

    path.rename(folder / DEAD)  # as if this process were another one that has crashed
    viewer.window.remove_dock_widget(workbench)
    viewer.layers.clear()
    again = open_workbench(viewer, qtbot)
    tab = again.segment_tab
    qtbot.waitUntil(lambda: "did not end properly" in tab.offer.text())
    assert name in tab.offer.text()
    tab.restore_button.click()
    qtbot.waitUntil(lambda: "The labels are back" in again.message.text())
    (back,) = viewer.layers
    np.testing.assert_array_equal(back.data, array)
    np.testing.assert_allclose(back.extent.world, extent)
    assert [str(unit) for unit in back.units] == ["millimeter"] * 3
    np.testing.assert_allclose(back.colormap.map(LUNG)[:3], (0, 1, 0))
    assert tab.labels.layer is back
    assert tab.background.currentData() == 1
    assert {row.label: row.name for row in tab.classes.rows}[LUNG] == "lung"
    assert tab.offer.text() == ""
    # Still kept, by this process now; the next stroke goes into the same file.
    mine = kept(again, folder, qtbot)
    assert mine.name.split("-")[1] == str(os.getpid())
    stroke(back, MUSCLE, plane=20)
    assert kept(again, folder, qtbot) == mine
    qtbot.waitUntil(lambda: bool((read_labels(mine)[20] == MUSCLE).any()))


def kept_by_name(folder: Path) -> dict[str, tuple[KeptLabels, np.ndarray]]:
    """Facts and voxels of all files, by the name of their layer."""
    facts = {path: read_facts(path) for path in folder.iterdir()}
    return {one.name: (one, read_labels(path)) for path, one in facts.items()}


@pytest.mark.usefixtures("light_quick")
def test_a_segmentation_that_was_painted_in_is_kept_and_comes_back(
    workbench: Any, viewer: Any, qtbot: Any, folder: Path
) -> None:
    strokes = painted(workbench, qtbot)
    found = trained(workbench, qtbot)
    found.paint((20, 10, 10), LUNG)
    written(workbench, qtbot)
    found.paint((21, 11, 11), MUSCLE)  # it belongs to no scan any more
    written(workbench, qtbot)
    files = kept_by_name(folder)
    assert set(files) == {strokes.name, found.name}
    facts, labels = files[found.name]
    np.testing.assert_array_equal(labels, found.data)
    assert facts.zero == "background"
    name, array = found.name, found.data.copy()

    for number, path in enumerate(list(folder.iterdir())):
        path.rename(folder / DEAD.replace("-0.npz", f"-{number}.npz"))
    viewer.window.remove_dock_widget(workbench)
    viewer.layers.clear()
    again = open_workbench(viewer, qtbot)
    qtbot.waitUntil(lambda: name in again.segment_tab.offer.text())
    again.segment_tab.restore_button.click()
    qtbot.waitUntil(lambda: "The labels are back" in again.message.text())
    np.testing.assert_array_equal(viewer.layers[name].data, array)
    again.segment_tab.labels.choose(viewer.layers[name])
    assert again.segment_tab.zero.currentData() == "background"
    written(again, qtbot)


def test_strokes_of_several_scans_come_back_to_their_scans(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any, folder: Path
) -> None:
    other = add_phantom(viewer, seed=2)  # on the same grid
    names = {}
    for image in (scan, other):
        workbench.header.volume.choose(image)
        names[image] = painted(workbench, qtbot).name
        settled(workbench, qtbot)
    written(workbench, qtbot)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / DEAD.replace("-0.npz", f"-{number}.npz"))
    viewer.window.remove_dock_widget(workbench)
    for layer in [layer for layer in viewer.layers if layer.name in names.values()]:
        viewer.layers.remove(layer)
    again = open_workbench(viewer, qtbot)
    tab = again.segment_tab
    again.header.volume.choose(scan)
    qtbot.waitUntil(lambda: "did not end properly" in tab.offer.text())
    tab.restore_button.click()
    qtbot.waitUntil(lambda: "The labels are back" in again.message.text())
    assert tab.labels.layer.name == names[scan]
    again.header.volume.choose(other)
    assert tab.labels.layer.name == names[other]
    tick(tab, scan)
    assert [labels.name for _, labels in tab.more.pairs] == [names[scan]]


def test_strokes_are_kept_in_a_layer_that_is_not_chosen_and_while_the_panel_is_hidden(
    workbench: Any, qtbot: Any, folder: Path
) -> None:
    tab = workbench.segment_tab
    first = painted(workbench, qtbot)
    tab.new_button.click()
    assert tab.labels.layer is not first
    stroke(first, LUNG, plane=20)
    written(workbench, qtbot)
    np.testing.assert_array_equal(kept_by_name(folder)[first.name][1], first.data)
    workbench.hide()
    stroke(first, MUSCLE, plane=21)
    written(workbench, qtbot)
    np.testing.assert_array_equal(kept_by_name(folder)[first.name][1], first.data)


def test_the_method_comes_back_after_a_crash(
    workbench: Any, viewer: Any, qtbot: Any, folder: Path
) -> None:
    painted(workbench, qtbot)
    path = kept(workbench, folder, qtbot)
    mode = workbench.segment_tab.mode
    mode.setCurrentIndex(mode.findData("finetune"))
    written(workbench, qtbot)
    path.rename(folder / DEAD)
    viewer.window.remove_dock_widget(workbench)
    viewer.layers.clear()
    again = open_workbench(viewer, qtbot)
    qtbot.waitUntil(lambda: "did not end properly" in again.segment_tab.offer.text())
    again.segment_tab.restore_button.click()
    qtbot.waitUntil(lambda: "The labels are back" in again.message.text())
    assert again.segment_tab.mode.currentData() == "finetune"
    written(again, qtbot)


def test_labels_that_nobody_painted_are_not_kept(
    workbench: Any, viewer: Any, qtbot: Any, folder: Path
) -> None:
    scan, painting = workbench.header.volume.layer, workbench.segmenting.painting
    mask = viewer.add_labels(np.ones(scan.data.shape, np.uint8), name="mask", **geometry_of(scan))
    workbench.tabs.setCurrentIndex(3)
    qtbot.waitUntil(lambda: painting.counts == {1: mask.data.size})
    painting._rename(1, "all")
    settled(workbench, qtbot)
    written(workbench, qtbot)
    assert not folder.exists()
    stroke(mask, LUNG)
    assert read_facts(kept(workbench, folder, qtbot)).names == {0: "background", 1: "all"}


def test_a_stroke_is_kept_however_long_counting_takes(
    workbench: Any, qtbot: Any, folder: Path, hold: Any, held: Any
) -> None:
    from napari_s2dc.widgets import segment_painting

    layer = painted(workbench, qtbot)
    path = kept(workbench, folder, qtbot)
    inside = hold(segment_painting, "counted")
    stroke(layer, LUNG, plane=20)
    qtbot.waitUntil(inside.is_set)
    stroke(layer, MUSCLE, plane=21)  # does not start the counting anew
    written(workbench, qtbot)
    assert (read_labels(path)[20] == LUNG).any()
    heard: list[bool] = []
    workbench.segmenting.painting.painted.connect(lambda: heard.append(True))
    held.set()
    settled(workbench, qtbot)
    assert len(heard) == 2
    written(workbench, qtbot)
    assert (read_labels(path)[21] == MUSCLE).any()


def test_the_next_file_waits_for_the_last_one(
    workbench: Any, qtbot: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, held: Any
) -> None:
    layer = painted(workbench, qtbot)
    path = kept(workbench, folder, qtbot)
    write, begun = KeptLabels.write, []

    def slowly(facts: KeptLabels, labels: Any, path: Path) -> Path:
        begun.append(True)
        assert held.wait(60)
        return write(facts, labels, path)

    monkeypatch.setattr(KeptLabels, "write", slowly)
    for plane in (20, 21, 22):
        stroke(layer, LUNG, plane=plane)
        qtbot.wait(50)
    assert len(begun) == 1
    assert len([name for name in workbench.jobs._running if name.startswith("writing")]) == 1
    stroke(layer, MUSCLE, plane=19)
    held.set()
    written(workbench, qtbot)
    qtbot.waitUntil(lambda: bool((read_labels(path)[19] == MUSCLE).any()))
    assert begun == [True, True]


def test_restored_strokes_lie_on_the_grid_of_the_file(
    viewer: Any, qtbot: Any, folder: Path
) -> None:
    from napari_s2dc._writer import volume_of

    affine = np.array([[0.0, 0, 2, 9], [0, -2, 0, -7], [3, 0, 0, 5], [0, 0, 0, 1]])
    geometry = {"scale": (3.0, 2.0, 2.0), "translate": (9.0, -7.0, 5.0)}
    facts = KeptLabels(
        "strokes", geometry, {}, {}, "unlabelled", 1, "/data/scan.nii.gz", affine.tolist()
    )
    facts.write(np.zeros((2, 3, 4), np.uint8), folder / DEAD)
    workbench = open_workbench(viewer, qtbot)
    qtbot.waitUntil(lambda: "strokes" in workbench.segment_tab.offer.text())
    workbench.segment_tab.restore_button.click()
    qtbot.waitUntil(lambda: len(viewer.layers) == 1)
    (layer,) = viewer.layers
    np.testing.assert_allclose(volume_of(*layer.as_layer_data_tuple()[:2]).affine, affine)
    written(workbench, qtbot)
    assert workbench.segmenting.autosave._facts(layer).image == "/data/scan.nii.gz"


def test_labels_can_be_discarded(viewer: Any, qtbot: Any, folder: Path) -> None:
    facts = KeptLabels("strokes", {}, {1: "one"}, {1: (1.0, 0.0, 0.0)}, "unlabelled", 1)
    facts.write(np.zeros((2, 3, 4), np.uint8), folder / DEAD)
    workbench = open_workbench(viewer, qtbot)
    qtbot.waitUntil(lambda: "strokes" in workbench.segment_tab.offer.text())
    workbench.segment_tab.discard_button.click()
    qtbot.waitUntil(lambda: not list(folder.iterdir()))
    assert workbench.segment_tab.offer.text() == ""


def test_only_files_of_ended_processes_are_left_behind(folder: Path) -> None:
    facts = KeptLabels("strokes", {}, {}, {}, "background", None)
    host = own_name(0).split("-")[0]
    earlier = f"{host}-{os.getpid()}-1700000000-0.npz"
    elsewhere = f"not_{DEAD}"  # may live, on a computer that shares the folder
    for name in (own_name(0), DEAD, earlier, elsewhere, "other.npz"):
        facts.write(np.zeros((2, 3, 4), np.uint8), folder / name)
    # A number that another process had before this one counts as ended.
    assert {path.name for path in left_behind(folder)} == {DEAD, earlier}
    (folder / DEAD).write_bytes(b"half a fi")
    with pytest.raises(S2DCError, match="no labels that can be restored"):
        read_facts(folder / DEAD)


def test_a_folder_that_cannot_be_written_is_told_once(
    workbench: Any, qtbot: Any, folder: Path
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way", encoding="utf-8")
    layer = painted(workbench, qtbot)
    qtbot.waitUntil(lambda: "not kept for the case of a crash" in workbench.message.text())
    workbench.tell("")
    stroke(layer, LUNG, plane=20)
    settled(workbench, qtbot)
    qtbot.wait(100)
    assert workbench.message.text() == ""
    folder.unlink()
