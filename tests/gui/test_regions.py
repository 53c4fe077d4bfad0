"""Embedding a part of a scan: what the view shows, or a box round shapes or labels."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from napari_s2dc.errors import VolumeError
from napari_s2dc.widgets.embed_tab import IN_BOX, IN_VIEW
from napari_s2dc.widgets.placement import geometry_of
from napari_s2dc.widgets.regions import can_bound, finder_round, region_shown, words
from napari_s2dc.widgets.volumes_of_layers import snapshot
from tests.gui.conftest import embed, probe_at


@pytest.fixture
def image(viewer: Any) -> Any:
    return viewer.add_image(
        np.zeros((40, 80, 100), np.float32), name="scan", scale=(3, 1, 2), translate=(5, 6, 7)
    )


def rectangle(
    viewer: Any, image: Any, corners: list[tuple[float, float, float]], **how: Any
) -> Any:
    world = np.array([image.data_to_world(corner) for corner in corners])
    return viewer.add_shapes([world], shape_type="polygon", name="box", **how)


def test_a_rectangle_in_a_slice_means_all_slices(viewer: Any, image: Any) -> None:
    corners = [(20, 10, 30), (20, 10, 79), (20, 59, 79), (20, 59, 30)]
    box = rectangle(viewer, image, corners)
    assert can_bound(box)
    assert finder_round(image, box, snapshot(image))() == ((0, 40), (10, 60), (30, 80))


def test_shapes_in_two_slices_give_a_box_between_them(viewer: Any, image: Any) -> None:
    both = [
        np.array([image.data_to_world((z, y, x)) for y, x in [(10, 30), (10, 79), (59, 79)]])
        for z in (4, 37)
    ]
    box = viewer.add_shapes(both, shape_type="polygon")
    assert finder_round(image, box, snapshot(image))() == ((4, 38), (10, 60), (30, 80))


def test_two_dimensional_shapes_lie_in_the_plane_of_y_and_x(viewer: Any, image: Any) -> None:
    world = np.array([image.data_to_world((0, y, x))[1:] for y, x in [(10, 30), (59, 79)]])
    box = viewer.add_shapes([world], shape_type="line")
    assert finder_round(image, box, snapshot(image))() == ((0, 40), (10, 60), (30, 80))


def test_labels_give_their_bounding_box_on_any_grid(viewer: Any, image: Any) -> None:
    painted = np.zeros((20, 80, 100), np.uint8)
    painted[2:19, 20:60, 40:90] = 3
    # half as many slices over the same place
    place = {"scale": (6, 1, 2), "translate": np.add(image.translate, (1.5, 0, 0))}
    labels = viewer.add_labels(painted, name="paint", **place)
    assert can_bound(labels)
    assert finder_round(image, labels, snapshot(image))() == ((4, 38), (20, 60), (40, 90))
    labels.data = np.zeros_like(painted)
    with pytest.raises(VolumeError, match="paint is empty"):
        finder_round(image, labels, snapshot(image))()
    far = viewer.add_labels(np.ones((4, 4, 4), np.uint8), name="far", translate=(900, 0, 0))
    with pytest.raises(VolumeError, match="far lies beside scan"):
        finder_round(image, far, snapshot(image))()


def test_a_small_region_grows_to_a_window_within_the_scan(viewer: Any, image: Any) -> None:
    painted = np.zeros((40, 80, 100), np.uint8)
    painted[38, 40, 2] = 1
    labels = viewer.add_labels(painted, scale=image.scale, translate=image.translate)
    region = finder_round(image, labels, snapshot(image))()
    assert region is not None
    assert [end - first for first, end in region] == [32, 32, 32]
    assert region[0] == (8, 40)
    assert region[2] == (0, 32)
    assert region[1][0] <= 40 < region[1][1]
    assert words(region) == "a region of 32 × 32 × 32 voxels"


def test_coarse_levels_have_regions_in_their_own_voxels(viewer: Any) -> None:
    levels = [np.zeros((80, 80, 80), np.float32), np.zeros((40, 40, 40), np.float32)]
    image = viewer.add_image(levels, multiscale=True, contrast_limits=(0, 1))
    painted = np.zeros((80, 80, 80), np.uint8)
    painted[8:76, :, :] = 1
    labels = viewer.add_labels(painted)
    assert finder_round(image, labels, snapshot(image, 1))() == ((4, 38), (0, 40), (0, 40))
    labels.data = np.ones_like(painted)
    assert finder_round(image, labels, snapshot(image, 1))() is None  # the whole scan


def test_what_the_view_shows(viewer: Any, image: Any, qtbot: Any) -> None:
    viewer.reset_view()
    source = snapshot(image)
    qtbot.waitUntil(lambda: region_shown(image, source, (1, 2)) is None)
    viewer.scene.camera.zoom *= 2.5
    qtbot.waitUntil(lambda: region_shown(image, source, (1, 2)) is not None, timeout=5000)
    region = region_shown(image, source, (1, 2))
    assert region is not None
    assert region[0] == (0, 40)
    assert region[1][0] > 0
    assert region[1][1] < 80
    with pytest.raises(VolumeError, match="slices only"):
        region_shown(image, source, (0, 1, 2))


def test_choices_say_why_they_cannot_be_taken(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    region = workbench.embed_tab.region
    box, view = region.findData(IN_BOX), region.findData(IN_VIEW)
    entries = region.model()
    assert not entries.item(box).isEnabled()
    assert "Shapes layer" in entries.item(box).toolTip()
    shapes = rectangle(viewer, scan, [(9, 5, 5), (9, 5, 30), (9, 30, 30)])
    assert entries.item(box).isEnabled()
    assert entries.item(view).isEnabled()
    region.setCurrentIndex(view)
    viewer.dims.ndisplay = 3
    assert not entries.item(view).isEnabled()
    assert region.currentIndex() == 0
    region.setCurrentIndex(box)
    viewer.layers.remove(shapes)
    qtbot.waitUntil(lambda: region.currentIndex() == 0, timeout=60_000)


def test_a_region_is_embedded_in_its_place(
    workbench: Any, viewer: Any, scan: Any, qtbot: Any
) -> None:
    painted = np.zeros(scan.data.shape, np.uint8)
    painted[:, 12:48, 8:44] = 1
    labels = viewer.add_labels(
        painted, name="here", scale=scan.scale, translate=scan.translate, units=scan.units
    )
    tab = workbench.embed_tab
    tab.box.choose(labels)
    tab.region.setCurrentIndex(tab.region.findData(IN_BOX))
    qtbot.waitUntil(lambda: "a region of 32 × 36 × 36 voxels" in tab.plan.text(), timeout=60_000)
    embed(workbench, scan, qtbot)
    embedding = workbench.session.embedded(scan).embedding
    assert embedding.offset_vox == (0, 12, 8)
    colours = workbench.session.overlays.find(scan, "colours")
    np.testing.assert_allclose(
        colours.data_to_world((-0.5,) * 3), scan.data_to_world((-0.5, 11.5, 7.5)), atol=1e-6
    )
    probe_at(workbench, scan, (20, 4, 20), qtbot)
    assert "outside" in workbench.message.text()
    probe_at(workbench, scan, (20, 24, 20), qtbot)
    heat = workbench.session.overlays.find(scan, "similarity")
    assert heat.data[2, 1, 1] == pytest.approx(1, abs=1e-3)
    labels.data = np.zeros_like(painted)
    tab.embed_button.click()
    qtbot.waitUntil(lambda: "here is empty" in workbench.message.text(), timeout=60_000)


def test_the_plan_follows_what_is_drawn_and_shown(
    workbench: Any, scan: Any, viewer: Any, qtbot: Any
) -> None:
    tab = workbench.embed_tab
    shapes = viewer.add_shapes([], ndim=3, name="box")
    tab.region.setCurrentIndex(tab.region.findData(IN_BOX))
    qtbot.waitUntil(lambda: "box is empty" in tab.plan.text(), timeout=60_000)
    corners = [(9, 0, 0), (9, 0, 40), (9, 40, 40), (9, 40, 0)]
    shapes.add([np.array([scan.data_to_world(corner) for corner in corners])])
    qtbot.waitUntil(lambda: "a region of 32 × 4" in tab.plan.text(), timeout=5000)
    tab.region.setCurrentIndex(tab.region.findData(IN_VIEW))
    before = tab.plan.text()
    viewer.scene.camera.zoom *= 4
    qtbot.waitUntil(lambda: tab.plan.text() not in ("", before), timeout=5000)
    workbench.hide()
    assert not workbench.encoders._followed


def test_labels_are_looked_through_in_threads_and_not_with_every_slice(
    workbench: Any, scan: Any, viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_s2dc.widgets import regions

    labels = viewer.add_labels(np.zeros(scan.data.shape, np.uint8), **geometry_of(scan))
    looked: list[bool] = []
    own = regions._corners

    def corners(*given: Any) -> Any:
        looked.append(threading.current_thread() is threading.main_thread())
        return own(*given)

    monkeypatch.setattr(regions, "_corners", corners)
    tab = workbench.embed_tab
    tab.box.choose(labels)
    tab.region.setCurrentIndex(tab.region.findData(IN_BOX))
    qtbot.waitUntil(lambda: "is empty" in tab.plan.text(), timeout=60_000)
    painted = tuple(axis.ravel() for axis in np.mgrid[0:32, 12:48, 8:44])
    labels.data_setitem(painted, 1)
    qtbot.waitUntil(lambda: "a region of 32 × 36 × 36" in tab.plan.text(), timeout=60_000)
    before = len(looked)
    viewer.dims.set_current_step(0, 3)
    labels.refresh()
    assert not workbench.encoders._soon.isActive()
    tab.embed_button.click()
    qtbot.waitUntil(lambda: len(looked) > before, timeout=60_000)
    assert not any(looked)
    workbench.jobs.cancel("embed")
    qtbot.waitUntil(lambda: not workbench.jobs.is_running("embed"), timeout=60_000)
